#include "bench/queue/probe.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum {
    REPLY_BYTES_MAX = 1024 * 1024,
};

int probe_open(struct probe_link *link, const char *socket_path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s", socket_path);
    buf_init(&link->reply, REPLY_BYTES_MAX);
    link->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (link->fd < 0) {
        return ERR_IO;
    }
    if (connect(link->fd, (struct sockaddr *)&address, sizeof(address)) != 0) {
        probe_close(link);
        return ERR_IO;
    }
    return 0;
}

void probe_close(struct probe_link *link)
{
    if (link->fd >= 0) {
        (void)close(link->fd);
        link->fd = -1;
    }
    buf_release(&link->reply);
}

/* Whether the reply is complete: a line, or "$n", a line end and n bytes more. */
static bool reply_complete(const struct buf *reply)
{
    struct span text = buf_span(reply);
    size_t line = span_find(text, '\n');
    if (line == text.len || text.data[0] != '$') {
        return line < text.len;
    }
    return text.len >= line + 1 + (size_t)strtoul(text.data + 1, NULL, 10) + 2;
}

int probe_command(struct probe_link *link, const char *command)
{
    char line[256];
    int len = snprintf(line, sizeof(line), "%s\r\n", command);
    buf_reset(&link->reply);
    if (write(link->fd, line, (size_t)len) != len) {
        return ERR_IO;
    }
    while (!reply_complete(&link->reply)) {
        char *room = NULL;
        int status = buf_reserve(&link->reply, 16384, &room);
        ssize_t got = status == 0 ? read(link->fd, room, 16384) : -1;
        if (got <= 0) {
            return ERR_IO;
        }
        buf_commit(&link->reply, (size_t)got);
    }
    return buf_span(&link->reply).data[0] == '-' ? ERR_PROTO : 0;
}

static double number_after(struct span line, const char *name)
{
    struct span key = span_of(name);
    return span_starts(line, key) ? strtod(line.data + key.len, NULL) : 0;
}

/* "cmdstat_hmget:calls=12,usec=34,...". A script runs its commands inside EVALSHA, whose time holds
 * theirs; our own INFO is no part of the work. */
static void add_command(struct span line, struct probe *out)
{
    struct span name = line;
    struct span rest = line;
    name = span_cut(&rest, ':');
    if (span_eq(name, SPAN_LIT("cmdstat_info"))) {
        return;
    }
    double calls = number_after(rest, "calls=");
    out->commands += calls;
    if (span_eq(name, SPAN_LIT("cmdstat_evalsha"))) {
        (void)span_cut(&rest, ',');
        out->scripts += calls;
        out->script_us += number_after(rest, "usec=");
    }
}

int probe_read(struct probe_link *link, struct probe *out)
{
    int status = probe_command(link, "INFO everything");
    if (status == 0) {
        status = buf_append_byte(&link->reply, '\0'); /* strtod stops there */
    }
    if (status != 0) {
        return status;
    }
    struct probe probe = {0};
    struct span rest = buf_span(&link->reply);
    while (rest.len > 0) {
        struct span line = span_cut(&rest, '\n');
        probe.cpu_us += number_after(line, "used_cpu_sys:") * 1e6;
        probe.cpu_us += number_after(line, "used_cpu_user:") * 1e6;
        probe.main_cpu_us += number_after(line, "used_cpu_sys_main_thread:") * 1e6;
        probe.main_cpu_us += number_after(line, "used_cpu_user_main_thread:") * 1e6;
        probe.memory_bytes += number_after(line, "used_memory:");
        probe.aof_bytes += number_after(line, "aof_current_size:");
        if (span_starts(line, SPAN_LIT("cmdstat_"))) {
            add_command(line, &probe);
        }
    }
    *out = probe;
    return 0;
}

struct probe probe_between(const struct probe *before, const struct probe *after)
{
    return (struct probe){
        .cpu_us = after->cpu_us - before->cpu_us,
        .main_cpu_us = after->main_cpu_us - before->main_cpu_us,
        .script_us = after->script_us - before->script_us,
        .commands = after->commands - before->commands,
        .scripts = after->scripts - before->scripts,
        .memory_bytes = after->memory_bytes - before->memory_bytes,
        .aof_bytes = after->aof_bytes - before->aof_bytes,
    };
}
