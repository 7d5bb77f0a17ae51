/* The embedded Redis: one private redis-server child on a Unix socket in data_dir, append-only file
 * on.
 *
 * Must not know: keys or scripts. Thread: the loop's (the main thread's). The child is started,
 * watched, restarted with back-off when it dies, and stopped in good order (SHUTDOWN through
 * SIGTERM). A truncated append-only tail is repaired by Redis itself (aof-load-truncated yes); any
 * other refusal to start is reported with the server's own words. When the gateway is killed, the
 * kernel sends the child SIGTERM (so embedded_start must be called on a thread that lives as long
 * as the process); the next gateway finds it by its pid file, waits until its files are written and
 * it is gone, and starts a new one on them.
 *
 * With fsync durability Redis ends when it cannot write its file; on a full disk it is started
 * again with back-off until there is space. What was answered is in the file, so nothing is lost.
 */
#ifndef HEAVE_QUEUE_EMBEDDED_H
#define HEAVE_QUEUE_EMBEDDED_H

#include "gateway/base/err.h"
#include "gateway/base/loop.h"
#include "queue/queue.h"

#include <stdbool.h>

struct embedded;

struct embedded_conf {
    const char *data_dir;       /* created with mode 0700 when missing */
    const char *server_program; /* NULL: "redis-server" from PATH */
    enum queue_durability durability;
    uint64_t max_memory_bytes;   /* 0: no limit given to Redis */
    uint64_t disk_reserve_bytes; /* with less free space on_disk says low; with less than a
                                    sixteenth of it no server is started. 0: not looked at */
};

struct embedded_ops {
    /* The server answers on its socket (first start and each restart). */
    void (*on_up)(void *ctx);
    /* It died or does not start; it is tried again. `why` is a sentence with its last output. */
    void (*on_down)(void *ctx, const char *why);
    /* The disk has less than the reserve left, or enough again. May be NULL. */
    void (*on_disk)(void *ctx, bool low, uint64_t free_bytes);
};

/* The socket's path for queue_conf.socket_path: data_dir/redis.sock, owned by the caller
 * (mem_free). Paths too long for a Unix socket get a short private directory under /tmp with a
 * stable name; NULL never. */
char *embedded_socket_path(const char *data_dir);

/* Starts the child. Errors: ERR_IO (directory, program), ERR_BUSY (another gateway owns data_dir),
 * with a sentence. */
MUST_USE int embedded_start(struct loop *loop, const struct embedded_conf *conf,
                            const struct embedded_ops *ops, void *ctx, struct embedded **out,
                            struct err *err);
/* Stops the child: SIGTERM, after 10 s SIGKILL; then `on_stopped`, and the object is freed. */
void embedded_stop(struct embedded *embedded, void (*on_stopped)(void *ctx), void *ctx);
/* Process id of the child, 0 when none runs. */
int embedded_pid(const struct embedded *embedded);

#endif
