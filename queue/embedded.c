/* The embedded server's life; embedded.h says what is promised.
 *
 *   LEFTOVER ──gone──► STARTING ──PONG──► UP
 *      ▲                  ▲ │              │ exit
 *      │ start: pid file  │ └──exit──► WAITING (back-off) ──► STARTING
 *                         └─────────────────┘
 *   any ──embedded_stop──► STOPPING ──exit──► freed
 *
 * The child is forked here rather than with uv_spawn because it needs PR_SET_PDEATHSIG: when the
 * gateway is killed, the kernel sends the server SIGTERM, which makes it write out and fsync its
 * append-only file and leave; no server ever outlives its gateway by more than that. The next
 * gateway finds the pid file, waits for the process to be gone (and asks it to go), and starts a
 * new one on the same files. Exits are events of a pidfd, which works for a process that is not our
 * child, too. */
#include "queue/embedded.h"

#include "gateway/base/codec.h"
#include "gateway/base/failpoint.h"
#include "gateway/base/stream.h"
#include "queue/embedded_words.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    SOCKET_PATH_MAX = 100, /* sun_path has 108 bytes */
    PROBE_FIRST_MS = 5,
    PROBE_MAX_MS = 100,
    BACKOFF_FIRST_MS = 100,
    BACKOFF_MAX_MS = 5000,
    KILL_AFTER_MS = 10000,
    OUTPUT_KEPT = 2000,
    STEADY_MS = 10000, /* up for so long: the next failure is a new one */
    DISK_EVERY_MS = 500,
    START_PART = 16, /* of the reserve: below it a server is not even started */
};

enum embedded_phase {
    PHASE_LEFTOVER,
    PHASE_STARTING,
    PHASE_UP,
    PHASE_WAITING,
    PHASE_STOPPING,
};

struct embedded {
    struct loop *loop;
    const struct embedded_ops *ops;
    void *ctx;
    enum embedded_phase phase;
    enum queue_durability durability;
    uint64_t max_memory_bytes;
    uint64_t disk_reserve_bytes;
    bool disk_low;
    bool told_waiting; /* that it waits for space to start */
    bool conf_written;
    struct loop_timer disk_timer;
    int64_t up_ms;  /* loop time since when it is up */
    char *data_dir; /* absolute */
    char *socket_path;
    char *program; /* absolute */
    char *conf_path;
    char *pid_path;
    int lock_fd;
    pid_t pid; /* 0: none */
    int pidfd;
    bool child; /* `pid` is ours to reap */
    uv_poll_t exit_poll;
    uv_pipe_t output;
    bool poll_open, output_open; /* handles not yet closed */
    char kept[OUTPUT_KEPT + 1];  /* the last output */
    size_t kept_len;
    char chunk[2048]; /* read buffer of `output` */
    struct stream *probe;
    struct loop_timer timer; /* probe, back-off */
    struct loop_timer kill_timer;
    int64_t probe_ms;
    int64_t backoff_ms;
    void (*on_stopped)(void *ctx);
    void *stopped_ctx;
};

static void start_child(void *ctx);
static void probe_later(struct embedded *embedded);

static char *join(const char *dir, const char *name)
{
    char path[PATH_MAX];
    (void)snprintf(path, sizeof(path), "%s/%s", dir, name);
    return mem_dup(span_of(path));
}

/* Paths. */

static void short_directory(const char *data_dir, char out[64])
{
    (void)snprintf(out, 64, "/tmp/heave-%u-%016llx", (unsigned)getuid(),
                   (unsigned long long)codec_fnv1a(span_of(data_dir)));
}

char *embedded_socket_path(const char *data_dir)
{
    char short_dir[64];
    if (strlen(data_dir) + strlen("/redis.sock") <= SOCKET_PATH_MAX) {
        return join(data_dir, "redis.sock");
    }
    short_directory(data_dir, short_dir);
    return join(short_dir, "redis.sock");
}

/* A directory of ours alone, made when missing. */
static int own_directory(const char *path, struct err *err)
{
    struct stat info;
    if (mkdir(path, 0700) != 0 && errno != EEXIST) {
        return err_set(err, ERR_IO, "The directory %s cannot be made: %s.", path, strerror(errno));
    }
    if (stat(path, &info) != 0 || !S_ISDIR(info.st_mode)) {
        return err_set(err, ERR_IO, "%s is not a directory.", path);
    }
    if (access(path, R_OK | W_OK | X_OK) != 0) {
        return err_set(err, ERR_IO, "The directory %s cannot be written: %s.", path,
                       strerror(errno));
    }
    return 0;
}

/* Under /tmp anybody could have made it first: it must be a real directory, ours, closed to others.
 */
static int own_short_directory(const char *path, struct err *err)
{
    struct stat info;
    int status = own_directory(path, err);
    if (status != 0) {
        return status;
    }
    if (lstat(path, &info) != 0 || !S_ISDIR(info.st_mode) || info.st_uid != getuid() ||
        (info.st_mode & 077) != 0) {
        return err_set(err, ERR_IO,
                       "%s belongs to somebody else; remove it or choose a shorter queue.data_dir.",
                       path);
    }
    return 0;
}

/* Finds `name` as the shell would. NULL when there is no such program. */
static char *find_program(const char *name)
{
    if (strchr(name, '/') != NULL) {
        return access(name, X_OK) == 0 ? mem_dup(span_of(name)) : NULL;
    }
    const char *path = getenv("PATH");
    struct span rest = span_of(path != NULL ? path : "/usr/local/bin:/usr/bin:/bin");
    while (rest.len > 0) {
        char *dir = mem_dup(span_cut(&rest, ':'));
        char *found = join(dir, name);
        mem_free(dir);
        if (access(found, X_OK) == 0) {
            return found;
        }
        mem_free(found);
    }
    return NULL;
}

/* The configuration file. */

static void put_quoted(FILE *file, const char *name, const char *value)
{
    (void)fprintf(file, "%s \"", name);
    for (; *value != '\0'; value++) {
        if (*value == '"' || *value == '\\') {
            (void)fputc('\\', file);
        }
        (void)fputc(*value, file);
    }
    (void)fputs("\"\n", file);
}

/* Errors: ERR_IO, ERR_FULL (the disk). */
static int write_conf(const struct embedded *embedded, struct err *err)
{
    int fd = open(embedded->conf_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    FILE *file = fd >= 0 ? fdopen(fd, "w") : NULL;
    if (file == NULL) {
        if (fd >= 0) {
            (void)close(fd);
        }
        return err_set(err, ERR_IO, "%s cannot be written: %s.", embedded->conf_path,
                       strerror(errno));
    }
    (void)fputs(
        "# Written by heave at each start; changes are lost.\n"
        "port 0\nunixsocketperm 700\ndaemonize no\nprotected-mode yes\nsave \"\"\n"
        "appendonly yes\nappendfilename appendonly.aof\naof-use-rdb-preamble yes\naof-load-truncated yes\n"
        "no-appendfsync-on-rewrite no\nauto-aof-rewrite-percentage 100\nauto-aof-rewrite-min-size 256mb\n"
        "maxmemory-policy noeviction\nstop-writes-on-bgsave-error no\nlazyfree-lazy-user-del yes\n"
        /* Leases are small but busy: in the compact form every look-up would scan them. */
        "hash-max-ziplist-entries 8\nzset-max-ziplist-entries 8\n"
        "slowlog-log-slower-than -1\nmaxclients 1000\ntimeout 0\n",
        file);
    (void)fprintf(file, "appendfsync %s\n",
                  embedded->durability == QUEUE_MEMORY ? "everysec" : "always");
    if (embedded->max_memory_bytes > 0) {
        (void)fprintf(file, "maxmemory %llu\n", (unsigned long long)embedded->max_memory_bytes);
    }
    put_quoted(file, "dir", embedded->data_dir);
    put_quoted(file, "unixsocket", embedded->socket_path);
    if (fclose(file) != 0) {
        return err_set(err, errno == ENOSPC ? ERR_FULL : ERR_IO, "%s cannot be written: %s.",
                       embedded->conf_path, strerror(errno));
    }
    return 0;
}

/* The pid file. */

static void write_pid(const struct embedded *embedded)
{
    FILE *file = fopen(embedded->pid_path, "we");
    if (file != NULL) {
        (void)fprintf(file, "%d\n", (int)embedded->pid);
        (void)fclose(file);
    }
}

/* The server an earlier gateway left in this directory, or 0. A recycled pid is told by its
 * directory. */
static pid_t read_leftover(const struct embedded *embedded)
{
    int pid = 0;
    FILE *file = fopen(embedded->pid_path, "re");
    if (file == NULL) {
        return 0;
    }
    bool read_it = fscanf(file, "%d", &pid) == 1 && pid > 1;
    (void)fclose(file);
    if (!read_it) {
        return 0;
    }
    char link[64];
    char cwd[PATH_MAX];
    (void)snprintf(link, sizeof(link), "/proc/%d/cwd", pid);
    ssize_t len = readlink(link, cwd, sizeof(cwd) - 1);
    if (len <= 0) {
        return 0;
    }
    cwd[len] = '\0';
    return strcmp(cwd, embedded->data_dir) == 0 ? (pid_t)pid : 0;
}

/* Ending. */

static void free_when_closed(void *ctx)
{
    struct embedded *embedded = ctx;
    if (embedded->phase != PHASE_STOPPING || embedded->pid != 0 || embedded->poll_open ||
        embedded->output_open || embedded->probe != NULL) {
        return;
    }
    loop_timer_stop(&embedded->timer);
    loop_timer_stop(&embedded->kill_timer);
    loop_timer_stop(&embedded->disk_timer);
    (void)unlink(embedded->pid_path);
    (void)close(embedded->lock_fd);
    void (*on_stopped)(void *) = embedded->on_stopped;
    void *stopped_ctx = embedded->stopped_ctx;
    mem_free(embedded->data_dir);
    mem_free(embedded->socket_path);
    mem_free(embedded->program);
    mem_free(embedded->conf_path);
    mem_free(embedded->pid_path);
    mem_free(embedded);
    on_stopped(stopped_ctx);
}

static void on_output_closed(uv_handle_t *handle)
{
    struct embedded *embedded = handle->data;
    embedded->output_open = false;
    free_when_closed(embedded);
}

static void close_output(struct embedded *embedded)
{
    if (embedded->output_open && uv_is_closing((uv_handle_t *)&embedded->output) == 0) {
        uv_close((uv_handle_t *)&embedded->output, on_output_closed);
    }
}

/* Every line counts: the last ones say why a server does not start. */
static void keep_output(struct embedded *embedded, struct span text)
{
    if (text.len > OUTPUT_KEPT) {
        text = span_make(text.data + (text.len - OUTPUT_KEPT), OUTPUT_KEPT);
    }
    size_t drop = embedded->kept_len + text.len > OUTPUT_KEPT
                      ? embedded->kept_len + text.len - OUTPUT_KEPT
                      : 0;
    memmove(embedded->kept, embedded->kept + drop, embedded->kept_len - drop);
    embedded->kept_len -= drop;
    memcpy(embedded->kept + embedded->kept_len, text.data, text.len);
    embedded->kept_len += text.len;
    embedded->kept[embedded->kept_len] = '\0';
}

static void give_chunk(uv_handle_t *handle, size_t suggested, uv_buf_t *out)
{
    (void)suggested;
    struct embedded *embedded = handle->data;
    *out = uv_buf_init(embedded->chunk, sizeof(embedded->chunk));
}

static void on_output(uv_stream_t *stream, ssize_t count, const uv_buf_t *chunk)
{
    struct embedded *embedded = stream->data;
    if (count > 0) {
        keep_output(embedded, span_make(chunk->base, (size_t)count));
    } else if (count < 0) {
        close_output(embedded);
    }
}

/* Free bytes of the disk under data_dir; 0 when the system does not say. */
static uint64_t free_bytes(const struct embedded *embedded)
{
    struct statvfs disk;
    return statvfs(embedded->data_dir, &disk) == 0 ? (uint64_t)disk.f_bavail * disk.f_frsize : 0;
}

static void describe_exit(const struct embedded *embedded, int status, char *out, size_t out_bytes)
{
    char how[64];
    char *split = join(embedded->data_dir, "appendonlydir");
    if (WIFSIGNALED(status)) {
        (void)snprintf(how, sizeof(how), "was killed by signal %d", WTERMSIG(status));
    } else {
        (void)snprintf(how, sizeof(how), "ended with code %d", WEXITSTATUS(status));
    }
    struct embedded_end end = {
        .output = span_make(embedded->kept, embedded->kept_len),
        .how = how,
        .data_dir = embedded->data_dir,
        .free_bytes = free_bytes(embedded),
        .split_files = access(split, F_OK) == 0,
    };
    embedded_explain(&end, out, out_bytes);
    mem_free(split);
}

static void on_poll_closed(uv_handle_t *handle)
{
    struct embedded *embedded = handle->data;
    embedded->poll_open = false;
    (void)close(embedded->pidfd);
    embedded->pidfd = -1;
    free_when_closed(embedded);
    /* `embedded` may be gone here. */
}

static void restart_later(struct embedded *embedded)
{
    embedded->phase = PHASE_WAITING;
    loop_timer_start(embedded->loop, &embedded->timer, embedded->backoff_ms, start_child, embedded);
    embedded->backoff_ms = embedded->backoff_ms * 2 < BACKOFF_MAX_MS ? embedded->backoff_ms * 2
                                                                     : BACKOFF_MAX_MS;
}

static void on_exit_event(uv_poll_t *poll, int poll_status, int events)
{
    (void)events;
    (void)poll_status;
    struct embedded *embedded = poll->data;
    int status = 0;
    if (embedded->child && waitpid(embedded->pid, &status, WNOHANG) != embedded->pid) {
        return; /* not yet */
    }
    bool was_child = embedded->child;
    bool was_up = embedded->phase == PHASE_UP;
    embedded->pid = 0;
    loop_timer_stop(&embedded->kill_timer);
    (void)uv_poll_stop(poll);
    uv_close((uv_handle_t *)poll, on_poll_closed);
    close_output(embedded);
    if (embedded->probe != NULL) {
        stream_abort(embedded->probe);
    }
    if (embedded->phase == PHASE_STOPPING) {
        return;
    }
    loop_timer_stop(&embedded->timer);
    if (!was_child) {
        restart_later(embedded);
        return;
    }
    char why[500];
    describe_exit(embedded, status, why, sizeof(why));
    if (was_up && loop_now_ms(embedded->loop) - embedded->up_ms > STEADY_MS) {
        embedded->backoff_ms = BACKOFF_FIRST_MS;
    }
    restart_later(embedded);
    embedded->ops->on_down(embedded->ctx, why);
}

static int watch_exit(struct embedded *embedded)
{
    embedded->pidfd = pidfd_open(embedded->pid, 0);
    if (embedded->pidfd < 0) {
        return ERR_IO;
    }
    if (uv_poll_init(loop_uv(embedded->loop), &embedded->exit_poll, embedded->pidfd) != 0) {
        (void)close(embedded->pidfd);
        return ERR_IO;
    }
    embedded->exit_poll.data = embedded;
    embedded->poll_open = true;
    return uv_poll_start(&embedded->exit_poll, UV_READABLE, on_exit_event) == 0 ? 0 : ERR_IO;
}

/* Starting. */

/* Runs in the child between fork and exec: only what is safe there. */
static NORETURN void become_server(const struct embedded *embedded, int output_fd, pid_t parent)
{
    sigset_t none;
    (void)sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    (void)signal(SIGPIPE, SIG_DFL);
    (void)setsid(); /* a Ctrl-C in the terminal is for the gateway, which drains first */
    (void)prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent || chdir(embedded->data_dir) != 0) {
        _exit(1);
    }
    int null_fd = open("/dev/null", O_RDONLY);
    (void)dup2(null_fd, STDIN_FILENO);
    (void)dup2(output_fd, STDOUT_FILENO);
    (void)dup2(output_fd, STDERR_FILENO);
    char *const arguments[] = {embedded->program, embedded->conf_path, NULL};
    (void)execv(embedded->program, arguments);
    _exit(127);
}

static int open_output(struct embedded *embedded, int fd)
{
    if (uv_pipe_init(loop_uv(embedded->loop), &embedded->output, 0) != 0) {
        (void)close(fd);
        return ERR_IO;
    }
    embedded->output.data = embedded;
    embedded->output_open = true;
    if (uv_pipe_open(&embedded->output, fd) != 0) {
        (void)close(fd);
        close_output(embedded);
        return ERR_IO;
    }
    return uv_read_start((uv_stream_t *)&embedded->output, give_chunk, on_output) == 0 ? 0 : ERR_IO;
}

static int fork_child(struct embedded *embedded)
{
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) != 0) {
        return ERR_IO;
    }
    pid_t parent = getpid();
    pid_t pid = fork();
    if (pid < 0) {
        (void)close(fds[0]);
        (void)close(fds[1]);
        return ERR_IO;
    }
    if (pid == 0) {
        become_server(embedded, fds[1], parent);
    }
    (void)close(fds[1]);
    embedded->pid = pid;
    embedded->child = true;
    FAILPOINT("embedded-started");
    write_pid(embedded);
    int status = open_output(embedded, fds[0]);
    return status != 0 ? status : watch_exit(embedded);
}

/* A server without room for its first write would end at once, after reading all its files. */
static bool wait_for_space(struct embedded *embedded)
{
    uint64_t left = free_bytes(embedded);
    bool room = left >= embedded->disk_reserve_bytes / START_PART;
    if (room && !embedded->conf_written) {
        embedded->conf_written = write_conf(embedded, NULL) == 0;
        room = embedded->conf_written;
    }
    if (room) {
        embedded->told_waiting = false;
        return false;
    }
    embedded->phase = PHASE_WAITING;
    loop_timer_start(embedded->loop, &embedded->timer, DISK_EVERY_MS, start_child, embedded);
    if (!embedded->told_waiting) {
        char why[500];
        embedded->told_waiting = true;
        (void)snprintf(why, sizeof(why),
                       "The disk is full: %s has %llu KiB left, too little to start the embedded "
                       "redis-server. Nothing that was accepted is lost; free some space, the rest "
                       "goes by itself.",
                       embedded->data_dir, (unsigned long long)left / 1024);
        embedded->ops->on_down(embedded->ctx, why);
    }
    return true;
}

/* Full before Redis notices: what waits can still be delivered and settled. Some space more than
 * the reserve ends it, so that it does not come and go with each message. */
static void watch_disk(void *ctx)
{
    struct embedded *embedded = ctx;
    uint64_t left = free_bytes(embedded);
    uint64_t reserve = embedded->disk_reserve_bytes;
    bool low = left < (embedded->disk_low ? reserve + reserve / 8 : reserve);
    if (low != embedded->disk_low) {
        embedded->disk_low = low;
        if (embedded->ops->on_disk != NULL) {
            embedded->ops->on_disk(embedded->ctx, low, left);
        }
    }
    loop_timer_start(embedded->loop, &embedded->disk_timer, DISK_EVERY_MS, watch_disk, embedded);
}

static void start_child(void *ctx)
{
    struct embedded *embedded = ctx;
    if (embedded->poll_open || embedded->output_open || embedded->probe != NULL) {
        /* The last one's handles close in this or the next turn. */
        loop_timer_start(embedded->loop, &embedded->timer, 1, start_child, embedded);
        return;
    }
    FAILPOINT("embedded-starting");
    if (wait_for_space(embedded)) {
        return;
    }
    embedded->phase = PHASE_STARTING;
    embedded->kept_len = 0;
    embedded->probe_ms = PROBE_FIRST_MS;
    if (fork_child(embedded) != 0) {
        if (embedded->pid != 0) {
            (void)kill(embedded->pid, SIGKILL);
            (void)waitpid(embedded->pid, NULL, 0);
            embedded->pid = 0;
        }
        if (embedded->poll_open && uv_is_closing((uv_handle_t *)&embedded->exit_poll) == 0) {
            uv_close((uv_handle_t *)&embedded->exit_poll, on_poll_closed);
        }
        close_output(embedded);
        restart_later(embedded);
        embedded->ops->on_down(embedded->ctx,
                               "The embedded redis-server could not be started: no process or pipe "
                               "could be had.");
        return;
    }
    probe_later(embedded);
}

/* Asking whether it is there: PING, in RESP's inline form. */

static void on_probe_open(void *ctx)
{
    struct embedded *embedded = ctx;
    if (stream_write(embedded->probe, SPAN_LIT("PING\r\n")) != 0) {
        stream_abort(embedded->probe);
    }
}

static size_t on_probe_data(void *ctx, struct span bytes)
{
    struct embedded *embedded = ctx;
    if (span_find(bytes, '\n') == bytes.len) {
        return 0;
    }
    bool pong = span_starts(bytes, SPAN_LIT("+PONG"));
    stream_abort(embedded->probe);
    if (pong && embedded->phase == PHASE_STARTING) {
        loop_timer_stop(&embedded->timer);
        embedded->phase = PHASE_UP;
        embedded->up_ms = loop_now_ms(embedded->loop);
        embedded->ops->on_up(embedded->ctx);
    }
    return bytes.len;
}

static void on_probe_close(void *ctx, int status, const char *why)
{
    (void)status;
    (void)why;
    struct embedded *embedded = ctx;
    embedded->probe = NULL;
    if (embedded->phase == PHASE_STARTING && embedded->pid != 0) {
        probe_later(embedded);
    }
    free_when_closed(embedded);
}

static const struct stream_ops probe_ops = {
    .on_open = on_probe_open,
    .on_data = on_probe_data,
    .on_close = on_probe_close,
};

static void probe_now(void *ctx)
{
    struct embedded *embedded = ctx;
    struct stream_target target = {.host = embedded->socket_path, .connect_timeout_ms = 2000};
    if (embedded->probe == NULL && stream_connect(embedded->loop, &target, &probe_ops, embedded,
                                                  NULL, &embedded->probe) != 0) {
        embedded->probe = NULL;
        probe_later(embedded);
    }
}

static void probe_later(struct embedded *embedded)
{
    loop_timer_start(embedded->loop, &embedded->timer, embedded->probe_ms, probe_now, embedded);
    embedded->probe_ms = embedded->probe_ms * 2 < PROBE_MAX_MS ? embedded->probe_ms * 2
                                                               : PROBE_MAX_MS;
}

/* Ends a server: politely, then not. */
static void kill_now(void *ctx)
{
    struct embedded *embedded = ctx;
    if (embedded->pid != 0) {
        (void)kill(embedded->pid, SIGKILL);
    }
}

static void terminate(struct embedded *embedded)
{
    (void)kill(embedded->pid, SIGTERM);
    loop_timer_start(embedded->loop, &embedded->kill_timer, KILL_AFTER_MS, kill_now, embedded);
}

static int lock_directory(struct embedded *embedded, struct err *err)
{
    char *path = join(embedded->data_dir, "lock");
    embedded->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    mem_free(path);
    if (embedded->lock_fd < 0) {
        return err_set(err, ERR_IO, "The lock in %s cannot be opened: %s.", embedded->data_dir,
                       strerror(errno));
    }
    if (flock(embedded->lock_fd, LOCK_EX | LOCK_NB) != 0) {
        return err_set(err, ERR_BUSY,
                       "Another gateway is using %s; each needs a queue.data_dir of its own.",
                       embedded->data_dir);
    }
    return 0;
}

static int prepare(struct embedded *embedded, const struct embedded_conf *conf, struct err *err)
{
    char absolute[PATH_MAX];
    const char *name = conf->server_program != NULL ? conf->server_program : "redis-server";
    int status = own_directory(conf->data_dir, err);
    if (status != 0) {
        return status;
    }
    if (realpath(conf->data_dir, absolute) == NULL) {
        return err_set(err, ERR_IO, "The directory %s cannot be resolved: %s.", conf->data_dir,
                       strerror(errno));
    }
    embedded->data_dir = mem_dup(span_of(absolute));
    embedded->conf_path = join(absolute, "redis.conf");
    embedded->pid_path = join(absolute, "redis.pid");
    char *wanted = embedded_socket_path(conf->data_dir);
    if (span_starts(span_of(wanted), span_of("/tmp/heave-")) &&
        !span_starts(span_of(wanted), span_of(conf->data_dir))) {
        char short_dir[64];
        short_directory(conf->data_dir, short_dir);
        status = own_short_directory(short_dir, err);
        embedded->socket_path = wanted;
    } else {
        /* The server is started in its directory: what is relative to ours would not be found. */
        mem_free(wanted);
        embedded->socket_path = join(absolute, "redis.sock");
    }
    if (status == 0) {
        status = lock_directory(embedded, err);
    }
    embedded->program = find_program(name);
    if (status == 0 && embedded->program == NULL) {
        return err_set(err, ERR_IO,
                       "%s was not found; install it (Debian: apt-get install redis-server) or set "
                       "queue.redis to a server of yours.",
                       name);
    }
    status = status != 0 ? status : write_conf(embedded, err);
    embedded->conf_written = status == 0;
    return status == ERR_FULL ? 0 : status; /* space is waited for */
}

int embedded_start(struct loop *loop, const struct embedded_conf *conf,
                   const struct embedded_ops *ops, void *ctx, struct embedded **out,
                   struct err *err)
{
    struct embedded *embedded = mem_zero(sizeof(*embedded));
    embedded->loop = loop;
    embedded->ops = ops;
    embedded->ctx = ctx;
    embedded->durability = conf->durability;
    embedded->max_memory_bytes = conf->max_memory_bytes;
    embedded->disk_reserve_bytes = conf->disk_reserve_bytes;
    embedded->backoff_ms = BACKOFF_FIRST_MS;
    embedded->lock_fd = -1;
    embedded->pidfd = -1;
    int status = prepare(embedded, conf, err);
    if (status != 0) {
        if (embedded->lock_fd >= 0) {
            (void)close(embedded->lock_fd);
        }
        mem_free(embedded->data_dir);
        mem_free(embedded->socket_path);
        mem_free(embedded->program);
        mem_free(embedded->conf_path);
        mem_free(embedded->pid_path);
        mem_free(embedded);
        return status;
    }
    embedded->pid = read_leftover(embedded);
    embedded->child = false;
    embedded->phase = PHASE_LEFTOVER;
    if (embedded->pid != 0 && watch_exit(embedded) == 0) {
        terminate(embedded);
    } else {
        embedded->pid = 0;
        loop_timer_start(loop, &embedded->timer, 0, start_child, embedded);
    }
    if (embedded->disk_reserve_bytes > 0) {
        loop_timer_start(loop, &embedded->disk_timer, 0, watch_disk, embedded);
    }
    *out = embedded;
    return 0;
}

void embedded_stop(struct embedded *embedded, void (*on_stopped)(void *ctx), void *ctx)
{
    ASSERT(embedded->phase != PHASE_STOPPING);
    embedded->phase = PHASE_STOPPING;
    embedded->on_stopped = on_stopped;
    embedded->stopped_ctx = ctx;
    loop_timer_stop(&embedded->timer);
    if (embedded->probe != NULL) {
        stream_abort(embedded->probe);
    }
    if (embedded->pid != 0) {
        terminate(embedded);
    } else {
        loop_timer_start(embedded->loop, &embedded->timer, 0, free_when_closed, embedded);
    }
}

int embedded_pid(const struct embedded *embedded)
{
    return embedded->child ? (int)embedded->pid : 0;
}
