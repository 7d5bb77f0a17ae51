#include "queue/probe.h"

#include "queue/queue_internal.h"
#include "queue/redis_facts.h"

#include <stdio.h>

#define REPORT_MAX_BYTES ((size_t)1 << 20)

struct probe {
    struct loop *loop;
    struct redis_conf conf;
    struct nodes *nodes;
    struct loop_timer timer;
    struct buf report;
    int status;
    char why[600];
    bool ended;
    queue_probe_cb cb;
    void *ctx;
};

static void on_closed(void *ctx)
{
    struct probe *probe = ctx;
    probe->cb(probe->ctx, probe->status, buf_span(&probe->report), probe->why);
    buf_release(&probe->report);
    mem_free(probe);
}

static void say(struct probe *probe, const char *text)
{
    /* A report of more than a megabyte is cut, and still says enough. */
    if (buf_append(&probe->report, span_of(text)) != 0 ||
        buf_append_byte(&probe->report, '\n') != 0) {
        return;
    }
}

static void describe(void *ctx, const char *address, const struct redis *redis)
{
    const struct redis_facts *facts = redis_facts(redis);
    char memory[48] = "";
    char line[500];
    if (!redis_is_up(redis)) {
        (void)snprintf(line, sizeof(line), "%s: cannot be used", address);
        say(ctx, line);
        return;
    }
    if (facts->max_memory > 0) {
        (void)snprintf(memory, sizeof(memory), ", maxmemory %llu",
                       (unsigned long long)facts->max_memory);
    }
    bool is_valkey = strncmp(facts->version_text, "Valkey", 6) == 0;
    (void)snprintf(line, sizeof(line),
                   "%s: %s%s, %s, role %s with %u replicas online, appendonly %s, appendfsync %s, "
                   "maxmemory-policy %s%s",
                   address, is_valkey ? "" : "Redis ", facts->version_text,
                   facts->mode[0] != '\0' ? facts->mode : "standalone",
                   facts->role[0] != '\0' ? facts->role : "not said", facts->replicas,
                   facts->append_only < 0 ? "not said" : (facts->append_only == 1 ? "yes" : "no"),
                   facts->fsync[0] != '\0' ? facts->fsync : "not said",
                   facts->policy[0] != '\0' ? facts->policy : "not said", memory);
    say(ctx, line);
}

static void promise(struct probe *probe)
{
    const struct queue_conf *server = probe->conf.server;
    char line[200];
    const char *how = "the server promises nothing on disk, and nothing is asked";
    switch (nodes_wait_kind(probe->nodes, 0)) {
    case REDIS_WAIT_AOF:
        how = "by WAITAOF after each group of messages";
        break;
    case REDIS_WAIT_REPLICA:
        how = "by WAIT for the replicas after each group of messages";
        break;
    case REDIS_WAIT_NONE:
        if (server->durability == QUEUE_FSYNC) {
            how = "by the server, which fsyncs before it answers";
        }
        break;
    }
    (void)snprintf(line, sizeof(line), "durability %s: %s",
                   queue_durability_name(server->durability), how);
    say(probe, line);
}

static void end(struct probe *probe, int status)
{
    if (probe->ended) {
        return;
    }
    probe->ended = true;
    probe->status = status;
    loop_timer_stop(&probe->timer);
    nodes_each(probe->nodes, describe, probe);
    if (status == 0) {
        promise(probe);
    }
    nodes_close(probe->nodes, on_closed, probe);
}

static void give_up(void *ctx)
{
    struct probe *probe = ctx;
    if (probe->why[0] == '\0') {
        (void)snprintf(probe->why, sizeof(probe->why), "Redis did not answer in time.%s",
                       probe->conf.server->tls != NULL
                           ? " It is asked for TLS (rediss:// or queue.tls), which a plain port "
                             "does not answer."
                           : "");
    }
    end(probe, nodes_heard(probe->nodes) ? ERR_INVAL : ERR_UNAVAILABLE);
}

/* All shards up: good, when each may take messages. */
static void check_all(struct probe *probe)
{
    for (uint32_t shard = 0; shard < probe->conf.server->shards; shard++) {
        if (!nodes_is_up(probe->nodes, shard)) {
            return;
        }
    }
    for (uint32_t shard = 0; shard < probe->conf.server->shards; shard++) {
        if (!nodes_is_prompt(probe->nodes, shard)) {
            end(probe, ERR_INVAL); /* the warning said why */
            return;
        }
    }
    end(probe, 0);
}

static void on_state(void *ctx, bool up, const char *why)
{
    struct probe *probe = ctx;
    if (probe->ended) {
        return;
    }
    if (why[0] != '\0') {
        (void)snprintf(probe->why, sizeof(probe->why), "%s", why);
    }
    if (up) {
        check_all(probe);
    } else if (probe->conf.server->topology == QUEUE_STANDALONE) {
        give_up(probe);
    }
}

static void on_warning(void *ctx, const char *text)
{
    struct probe *probe = ctx;
    char line[400];
    (void)snprintf(line, sizeof(line), "warning: %s", text);
    (void)snprintf(probe->why, sizeof(probe->why), "%s", text);
    say(probe, line);
}

static const struct nodes_ops ops = {.on_state = on_state, .on_warning = on_warning};

void queue_probe(struct loop *loop, const struct queue_conf *conf, int64_t wait_ms,
                 queue_probe_cb cb, void *ctx)
{
    struct probe *probe = mem_zero(sizeof(*probe));
    probe->loop = loop;
    probe->cb = cb;
    probe->ctx = ctx;
    buf_init(&probe->report, REPORT_MAX_BYTES);
    probe->conf = (struct redis_conf){
        .server = conf, .scripts = queue_scripts, .script_count = SCRIPT_COUNT};
    probe->nodes = nodes_open(loop, &probe->conf, &ops, probe);
    loop_timer_start(loop, &probe->timer, wait_ms, give_up, probe);
}
