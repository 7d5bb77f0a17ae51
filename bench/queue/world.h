/* A private Redis with two queue handles, driven step by step: one that enqueues, one that claims,
 * starts and settles. Each step returns when Redis has answered all of it; what cannot be measured
 * (Redis died, a call failed) ends the program with a sentence.
 *
 * Thread: the loop's; the steps run the loop. Worlds may share it. */
#ifndef HEAVE_BENCH_QUEUE_WORLD_H
#define HEAVE_BENCH_QUEUE_WORLD_H

#include "bench/queue/options.h"
#include "bench/queue/probe.h"
#include "queue/embedded.h"
#include "queue/queue.h"

/* Of the mode that lets leases end. */
#define BENCH_SHORT_LEASE_MS 2000

_Noreturn void bench_die(const char *what, const char *why);
/* User and system time of this process. */
double bench_own_cpu_us(void);

/* Runs the loop until `condition`, which a callback that stops the loop makes true. */
#define BENCH_RUN_UNTIL(loop, condition) \
    while (!(condition)) {               \
        loop_run(loop);                  \
    }

/* What the messages look like. Addresses differ; the body is noise, which no compression makes
 * smaller. */
struct sample {
    const char *lane, *backend, *client;
    size_t batch_count, recipient_count;
    struct span body;
    struct recipient *recipients; /* of all batches */
    struct batch *batches;
};
void sample_init(struct sample *sample, const struct bench_options *options, const char *lane);
void sample_release(struct sample *sample);
/* Fills in everything but id and times. Spans point into the sample. */
struct message sample_message(const struct sample *sample);

struct world {
    struct loop *loop;
    char *folder;
    char *socket_path;
    struct queue_conf conf;
    struct embedded_conf embedded_conf;
    struct embedded *embedded;
    struct queue *in, *out;
    struct probe_link probe;
    size_t ups;
    size_t open;    /* handles not closed yet */
    size_t waiting; /* calls that were not answered yet */
    struct queue_lease **leases;
    size_t lease_count;
    bool claiming, stopped;
    size_t last_claim; /* batches */
};

/* Starts the server in a new folder and opens both handles. */
void world_open(struct world *world, struct loop *loop, const struct bench_options *options);
/* Stops the server and removes its folder. */
void world_close(struct world *world);
void world_command(struct world *world, const char *command);
struct probe world_probe(struct world *world);

/* Enqueues `count` messages, at most `in_flight` at a time. */
void world_enqueue(struct world *world, const struct sample *sample, size_t count,
                   size_t in_flight);
/* Claims `count` batches, which must be there, `each` at a time. They stay with the world. */
void world_claim(struct world *world, const struct sample *sample, size_t count, size_t each);
/* Starts all that is claimed, `each` in one turn of the loop. */
void world_start(struct world *world, size_t each);
/* Settles all that is claimed as delivered, at most `in_flight` at a time. */
void world_settle(struct world *world, size_t in_flight);

#endif
