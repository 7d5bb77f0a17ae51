/* One run: hands messages to workers at the wanted pace, takes their results, ends when all is
 * settled. Thread: the loop's.
 *
 * Must not know: SMTP or HTTP. A protocol gives a struct load_ops; each of its workers is one
 * connection that carries one message at a time.
 *
 * A worker's turns: load_next() -> ops->send (now, at the next free place of the pace, or after a
 * retry's wait) -> load_accepted() or load_failed() -> load_next() ... -> ops->end ->
 * load_worker_over(). */
#ifndef HEAVE_BENCH_LOAD_LOAD_H
#define HEAVE_BENCH_LOAD_LOAD_H

#include "bench/load/content.h"
#include "bench/load/options.h"
#include "bench/load/tally.h"
#include "gateway/base/loop.h"
#include "gateway/base/stream.h"

#include <stdio.h>

#define LOAD_SIGNALS 2

struct load;

/* The first member of a protocol's worker. */
struct load_worker {
    struct load *load;
    struct stream *stream; /* NULL: not connected */
    struct load_worker *next_idle;
    struct loop_timer timer; /* until a retry */
    uint64_t number;         /* of the message in hand, from 1; 0: none */
    int64_t taken_ms;        /* when it was taken first */
    int64_t wait_ms;         /* before it is sent again */
    int64_t begin_us;        /* when its content began to leave */
    size_t sent_bytes;       /* of the content's rest */
    bool idle;               /* waits for the pace */
};

struct load_ops {
    size_t worker_bytes;
    /* Prepares what all workers share, in load->content and load->plan. Errors: with a sentence. */
    int (*prepare)(struct load *load, struct err *err);
    void (*release)(struct load *load);
    /* A message is in hand: send it, connecting when there is no stream. */
    void (*send)(struct load_worker *worker);
    /* No message will come: close in good order and call load_worker_over, now or later. */
    void (*end)(struct load_worker *worker);
};

struct load {
    const struct load_options *options;
    const struct load_ops *ops;
    struct loop *loop;
    struct tls_context *tls; /* NULL unless some TLS is wanted */
    struct content content;
    void *plan; /* the protocol's */
    FILE *ids;
    char run[13]; /* names this run in subjects and Message-IDs */
    struct tally tally;
    char *workers;
    size_t over_count;
    struct load_worker *idle_first, *idle_last;
    struct loop_timer pace;
    struct loop_timer end;
    uv_signal_t signals[LOAD_SIGNALS]; /* SIGINT and SIGTERM: hand out no more */
    uint64_t taken;                    /* messages handed out */
    int64_t start_us;
    int64_t settled_us; /* when the last message was settled */
    bool stopped;       /* hands out no more */
    bool fatal;
};

extern const struct load_ops LOAD_SMTP_OPS;
extern const struct load_ops LOAD_HTTP_OPS;

/* Runs to the end. Returns 0 whatever became of the messages: `load->tally` says. Errors: with a
 * sentence; nothing was sent then. load_release() afterwards in any case. */
MUST_USE int load_run(struct load *load, const struct load_options *options, struct err *err);
/* Errors: ERR_IO (the ids could not all be written). */
MUST_USE int load_release(struct load *load);
/* Whether every message (all that were wanted, or all until the duration ended) and every recipient
 * was accepted. */
bool load_complete(const struct load *load);

/* ---- For the protocols ---- */

/* The worker is free (after a result, or after its connection ended). */
void load_next(struct load_worker *worker);
/* The message in hand was accepted for `recipients`; `id` is the server's, or empty. */
void load_accepted(struct load_worker *worker, uint64_t recipients, struct span id);

struct load_failure {
    const char *kind; /* letters, digits, dots and spaces: "452 4.3.1", "timeout" */
    const char *why;  /* the server's words or ours, for a person */
    bool temporary;   /* may be tried again */
    int64_t wait_ms;  /* the server's wish */
};
/* The message in hand was not accepted. With --retry and a temporary failure it stays in hand. */
void load_failed(struct load_worker *worker, const struct load_failure *failure);
/* Counts an error that leaves the message in hand: a refused recipient. */
void load_error(struct load *load, const char *kind, const char *why);
/* Ends the run early, for what no further message would survive. */
void load_fatal(struct load *load, const char *sentence);
void load_worker_over(struct load_worker *worker);

/* Opens worker->stream; on_open or on_close of `ops` follow. False: it cannot be, and the run ends;
 * the message in hand has failed. */
bool load_connect(struct load_worker *worker, struct tls_context *tls,
                  const struct stream_ops *ops);
/* What a lost connection (status and words of on_close) means for the message in hand. */
void load_lost(struct load_worker *worker, bool opened, int status, const char *why);
/* Starts the content of the message in hand and the clock of its latency. */
void load_content_begin(struct load_worker *worker);
/* Goes on with it as far as the stream takes it. True: all has been written. */
bool load_content_pump(struct load_worker *worker);

#endif
