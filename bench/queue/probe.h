/* What a Redis says about its own work: INFO over a blocking connection of its own.
 *
 * Must not know: the queue. Thread: any, one at a time. */
#ifndef HEAVE_BENCH_QUEUE_PROBE_H
#define HEAVE_BENCH_QUEUE_PROBE_H

#include "gateway/base/buf.h"

#include <stdint.h>

/* Since the server's start. CPU times are the kernel's; `script_us` is wall time inside EVALSHA, so
 * on a busy machine it holds waiting as well. */
struct probe {
    double cpu_us;      /* user and system, all threads */
    double main_cpu_us; /* of the thread that runs commands; 0 where the server does not say */
    double script_us;
    double commands; /* those inside scripts included */
    double scripts;  /* EVALSHA calls */
    double memory_bytes;
    double aof_bytes;
};

struct probe_link {
    int fd;
    struct buf reply;
};

/* Errors: ERR_IO. */
MUST_USE int probe_open(struct probe_link *link, const char *socket_path);
void probe_close(struct probe_link *link);
/* Sends one command without arguments that need quoting ("CONFIG SET a b") and waits for its one
 * reply. Errors: ERR_IO, ERR_PROTO (an error reply). */
MUST_USE int probe_command(struct probe_link *link, const char *command);
/* Errors: as above. */
MUST_USE int probe_read(struct probe_link *link, struct probe *out);
/* after - before. */
struct probe probe_between(const struct probe *before, const struct probe *after);

#endif
