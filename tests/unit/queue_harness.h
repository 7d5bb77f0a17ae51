/* What the queue's unit tests share: a private redis-server in a temporary directory, a loop that
 * is run until something has happened, and messages to enqueue. Every wait is for an event and ends
 * the program after 30 s. */
#ifndef HEAVE_TESTS_QUEUE_HARNESS_H
#define HEAVE_TESTS_QUEUE_HARNESS_H

#include "gateway/base/clock.h"
#include "gateway/base/loop.h"
#include "queue/embedded.h"
#include "queue/queue.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

struct rig {
    struct loop *loop;
    struct embedded *embedded;
    struct embedded_conf embedded_conf;
    struct queue_conf conf;
    char dir[64];
    char *socket_path;
    size_t ups, downs; /* of the server */
    bool stopped;
    struct loop_timer guard;
    bool doubled;         /* the same id was enqueued twice, which no caller does: no recount() */
    bool history_removed; /* recount() cannot know the recipients that ended */
    char why[500];        /* of the last down */
};

MAYBE_UNUSED static void rig_overdue(void *ctx)
{
    fprintf(stderr, "queue_harness: nothing happened for 30 s while waiting for %s\n",
            (const char *)ctx);
    abort();
}

/* Runs the loop until `condition`, which some callback that stops the loop makes true. */
#define RIG_WAIT(rig, condition)                                                                \
    do {                                                                                        \
        loop_timer_start((rig)->loop, &(rig)->guard, 30000, rig_overdue, (void *)(#condition)); \
        while (!(condition)) {                                                                  \
            loop_run((rig)->loop);                                                              \
        }                                                                                       \
        loop_timer_stop(&(rig)->guard);                                                         \
    } while (0)

MAYBE_UNUSED static void rig_on_up(void *ctx)
{
    struct rig *rig = ctx;
    rig->ups++;
    loop_stop(rig->loop);
}

MAYBE_UNUSED static void rig_on_down(void *ctx, const char *why)
{
    struct rig *rig = ctx;
    rig->downs++;
    (void)snprintf(rig->why, sizeof(rig->why), "%s", why);
    loop_stop(rig->loop);
}

MAYBE_UNUSED static const struct embedded_ops rig_embedded_ops = {.on_up = rig_on_up,
                                                                  .on_down = rig_on_down};

MAYBE_UNUSED static void rig_on_stopped(void *ctx)
{
    struct rig *rig = ctx;
    rig->stopped = true;
    loop_stop(rig->loop);
}

MAYBE_UNUSED static void rig_start_server(struct rig *rig)
{
    struct err err = {0};
    size_t ups = rig->ups;
    int status = embedded_start(rig->loop, &rig->embedded_conf, &rig_embedded_ops, rig,
                                &rig->embedded, &err);
    if (status != 0) {
        fail_msg("embedded_start: %s", err.text);
    }
    RIG_WAIT(rig, rig->ups > ups);
}

MAYBE_UNUSED static void rig_stop_server(struct rig *rig)
{
    rig->stopped = false;
    embedded_stop(rig->embedded, rig_on_stopped, rig);
    RIG_WAIT(rig, rig->stopped);
    rig->embedded = NULL;
}

MAYBE_UNUSED static void rig_init(struct rig *rig)
{
    *rig = (struct rig){0};
    (void)snprintf(rig->dir, sizeof(rig->dir), "/tmp/heave-queue-XXXXXX");
    assert_non_null(mkdtemp(rig->dir));
    rig->loop = loop_new("test");
    rig->embedded_conf = (struct embedded_conf){.data_dir = rig->dir, .durability = QUEUE_FSYNC};
    rig->socket_path = embedded_socket_path(rig->dir);
    rig->conf = (struct queue_conf){
        .socket_path = rig->socket_path,
        .durability = QUEUE_FSYNC,
        .shards = 1,
        .lease_ms = 60000,
        .retention_ms = 3600000,
        .dead_letters_ms = 3600000,
        .managed = true,
    };
}

MAYBE_UNUSED static void rig_release(struct rig *rig)
{
    char command[128];
    if (rig->embedded != NULL) {
        rig_stop_server(rig);
    }
    loop_timer_stop(&rig->guard);
    loop_free(&rig->loop);
    mem_free(rig->socket_path);
    (void)snprintf(command, sizeof(command), "rm -rf '%s'", rig->dir);
    assert_int_equal(system(command), 0);
}

/* One queue handle under test and what it reported. */
struct handle {
    struct rig *rig;
    struct queue_conf conf;
    struct queue *queue;
    bool up;
    size_t state_changes, hints;
    int64_t swept_ended, swept_started, swept_expired, swept_removed, swept_orphan,
        swept_unreadable, swept_poison, swept_dead, swept_lost;
    char why[500];
    char warning[400];
    size_t warnings;
    bool closed;
};

MAYBE_UNUSED static void handle_on_state(void *ctx, bool up, const char *why)
{
    struct handle *handle = ctx;
    handle->up = up;
    handle->state_changes++;
    (void)snprintf(handle->why, sizeof(handle->why), "%s", why);
    loop_stop(handle->rig->loop);
}

MAYBE_UNUSED static void handle_on_hint(void *ctx)
{
    struct handle *handle = ctx;
    handle->hints++;
    loop_stop(handle->rig->loop);
}

MAYBE_UNUSED static void handle_on_sweep(void *ctx, const char *what, int64_t count)
{
    struct handle *handle = ctx;
    struct {
        const char *name;
        int64_t *sum;
    } rows[] = {
        {"lease_ended", &handle->swept_ended}, {"lease_ended_started", &handle->swept_started},
        {"expired", &handle->swept_expired},   {"removed", &handle->swept_removed},
        {"orphan", &handle->swept_orphan},     {"unreadable", &handle->swept_unreadable},
        {"lost_record", &handle->swept_lost},  {"poison", &handle->swept_poison},
        {"dead_removed", &handle->swept_dead},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        if (strcmp(rows[i].name, what) == 0) {
            *rows[i].sum += count;
        }
    }
    loop_stop(handle->rig->loop);
}

MAYBE_UNUSED static void handle_on_warning(void *ctx, const char *text)
{
    struct handle *handle = ctx;
    handle->warnings++;
    (void)snprintf(handle->warning, sizeof(handle->warning), "%s", text);
    loop_stop(handle->rig->loop);
}

MAYBE_UNUSED static const struct queue_ops handle_ops = {
    .on_state = handle_on_state,
    .on_ready_hint = handle_on_hint,
    .on_sweep = handle_on_sweep,
    .on_warning = handle_on_warning,
};

MAYBE_UNUSED static void rig_tick(void *ctx)
{
    struct rig *rig = ctx;
    loop_stop(rig->loop);
}

MAYBE_UNUSED static void handle_open(struct rig *rig, struct handle *handle,
                                     const struct queue_conf *conf)
{
    *handle = (struct handle){.rig = rig, .conf = *conf};
    handle->queue = queue_open(rig->loop, &handle->conf, &handle_ops, handle);
    RIG_WAIT(rig, handle->up);
    /* The server's time comes just after, and no callback tells. */
    while (!queue_clock_known(handle->queue)) {
        loop_timer_start(rig->loop, &rig->guard, 1, rig_tick, rig);
        loop_run(rig->loop);
    }
}

MAYBE_UNUSED static void handle_on_closed(void *ctx)
{
    struct handle *handle = ctx;
    handle->closed = true;
    loop_stop(handle->rig->loop);
}

MAYBE_UNUSED static void handle_close(struct handle *handle)
{
    queue_close(handle->queue, handle_on_closed, handle);
    RIG_WAIT(handle->rig, handle->closed);
}

/* A message with `batch_count` batches of `per_batch` recipients. */
#define DRAFT_BATCHES 40
struct draft {
    char id[MESSAGE_ID_MAX + 1];
    struct message message;
    struct batch batches[DRAFT_BATCHES];
    struct recipient recipients[DRAFT_BATCHES][BATCH_RECIPIENTS_MAX];
};

MAYBE_UNUSED static void draft_fill(struct draft *draft, struct queue *queue, const char *client,
                                    const char *lane, size_t batch_count, size_t per_batch)
{
    memset(draft, 0, sizeof(*draft));
    queue_message_id(queue, NULL, draft->id);
    draft->message = (struct message){
        .id = span_of(draft->id),
        .client = span_of(client),
        .lane = span_of(lane),
        .reverse_path = SPAN_LIT("sender@contoso.com"),
        .header_from = SPAN_LIT("sender@contoso.com"),
        .message_id = SPAN_LIT("<1@contoso.com>"),
        .subject = SPAN_LIT("Disk full"),
        .accepted_ms = clock_wall_ms(),
        .expires_ms = clock_wall_ms() + 3600000,
        .body = SPAN_LIT("Subject: Disk full\r\n\r\nReally.\r\n"),
        .batches = draft->batches,
        .batch_count = batch_count,
    };
    for (size_t i = 0; i < batch_count; i++) {
        draft->batches[i] = (struct batch){
            .number = (uint32_t)i,
            .lane = span_of(lane),
            .backend = SPAN_LIT("hve"),
            .recipients = draft->recipients[i],
            .recipient_count = per_batch,
        };
        for (size_t j = 0; j < per_batch; j++) {
            draft->recipients[i][j].address = SPAN_LIT("anna@contoso.com");
        }
    }
}

/* One batch of one recipient, with an id made for the key. */
MAYBE_UNUSED static void draft_fill_keyed(struct draft *draft, struct queue *queue,
                                          const struct queue_idempotency *key)
{
    draft_fill(draft, queue, "erp", "normal", 1, 1);
    queue_message_id(queue, key, draft->id);
    draft->message.id = span_of(draft->id);
}

/* Results of calls. */
struct outcome {
    struct rig *rig;
    size_t done;
    size_t ok;
    int status; /* of the last one */
    bool replayed;
    char id[MESSAGE_ID_MAX + 1];
    char answer[64];
};

MAYBE_UNUSED static void on_enqueued(void *ctx, int status, const struct queue_enqueued *result)
{
    struct outcome *outcome = ctx;
    outcome->done++;
    outcome->ok += status == 0 ? 1 : 0;
    outcome->status = status;
    outcome->replayed = result->replayed;
    (void)snprintf(outcome->id, sizeof(outcome->id), "%.*s", SPAN_FMT(result->id));
    (void)snprintf(outcome->answer, sizeof(outcome->answer), "%.*s", SPAN_FMT(result->answer));
    loop_stop(outcome->rig->loop);
}

MAYBE_UNUSED static void on_settled(void *ctx, int status)
{
    struct outcome *outcome = ctx;
    outcome->done++;
    outcome->ok += status == 0 ? 1 : 0;
    outcome->status = status;
    loop_stop(outcome->rig->loop);
}

/* Enqueues and waits for the verdict. */
MAYBE_UNUSED static int enqueue_wait(struct handle *handle, const struct message *message,
                                     int64_t send_at_ms,
                                     const struct queue_idempotency *idempotency,
                                     struct outcome *out)
{
    struct outcome outcome = {.rig = handle->rig};
    int status = queue_enqueue(handle->queue, message, send_at_ms, idempotency, on_enqueued,
                               &outcome);
    if (status != 0) {
        return status;
    }
    RIG_WAIT(handle->rig, outcome.done == 1);
    if (out != NULL) {
        *out = outcome;
    }
    return outcome.status;
}

/* Counts every shard anew and compares with what the queue believes (tests/lib/recount.lua).
 * Nothing may be on its way. */
MAYBE_UNUSED static void recount(struct rig *rig)
{
    char command[1024];
    char line[300] = "";
    int len = snprintf(command, sizeof(command),
                       "redis-cli -s '%s' --eval '%s/tests/lib/recount.lua'", rig->socket_path,
                       HEAVE_SOURCE_DIR);
    for (uint32_t shard = 0; shard < 32; shard++) {
        len += snprintf(command + len, sizeof(command) - (size_t)len, " '{h%u}'", shard);
    }
    (void)snprintf(command + len, sizeof(command) - (size_t)len, "%s",
                   rig->history_removed ? " , partial" : "");
    FILE *output = popen(command, "r");
    assert_non_null(output);
    bool equal = fgets(line, sizeof(line), output) == NULL || line[0] == '\n';
    assert_int_equal(pclose(output), 0);
    if (!equal) {
        fail_msg("recount: %s", line);
    }
}

/* A command to the server, past the queue: makes what cannot happen. */
MAYBE_UNUSED static void redis_do(struct rig *rig, const char *arguments)
{
    char command[512];
    (void)snprintf(command, sizeof(command), "redis-cli -s '%s' %s >/dev/null", rig->socket_path,
                   arguments);
    assert_int_equal(system(command), 0);
}

#define CLAIM_MAX 2000
struct claimed {
    struct rig *rig;
    bool done;
    int status;
    struct queue_lease *leases[CLAIM_MAX];
    size_t count;
    int64_t closed_until_ms;
};

MAYBE_UNUSED static void on_claimed(void *ctx, int status, struct queue_lease **leases,
                                    size_t count, const int64_t *closed_until_ms)
{
    struct claimed *claimed = ctx;
    claimed->done = true;
    claimed->status = status;
    claimed->count = count;
    claimed->closed_until_ms = closed_until_ms[0];
    for (size_t i = 0; i < count; i++) {
        claimed->leases[i] = leases[i];
    }
    loop_stop(claimed->rig->loop);
}

MAYBE_UNUSED static void claim_wait(struct handle *handle, const char *lane, const char *backend,
                                    uint32_t max, struct claimed *out)
{
    struct queue_want want = {.lane = lane, .backend = backend, .max_batches = max};
    out->rig = handle->rig;
    out->done = false;
    out->count = 0;
    assert_int_equal(queue_claim(handle->queue, &want, 1, on_claimed, out), 0);
    RIG_WAIT(handle->rig, out->done);
}

MAYBE_UNUSED static void lease_finish(struct queue_lease *lease, enum recipient_state state)
{
    for (size_t i = 0; i < lease->batch.recipient_count; i++) {
        struct recipient *recipient = &lease->batch.recipients[i];
        if (recipient->state == RECIPIENT_QUEUED) {
            recipient->state = state;
            recipient->last_reply = SPAN_LIT("250 2.0.0 OK");
            recipient->at_ms = clock_wall_ms();
        }
    }
}

/* Settles as `next`, waits for the verdict, frees the lease. */
MAYBE_UNUSED static int settle_wait(struct handle *handle, struct queue_lease **lease,
                                    enum queue_next next, int64_t due_ms)
{
    struct outcome outcome = {.rig = handle->rig};
    struct queue_settlement settlement = {.next = next, .due_ms = due_ms};
    int status = queue_settle(handle->queue, *lease, &settlement, on_settled, &outcome);
    queue_lease_free(lease);
    if (status != 0) {
        return status;
    }
    RIG_WAIT(handle->rig, outcome.done == 1);
    return outcome.status;
}

struct shown {
    struct rig *rig;
    bool done;
    int status;
    struct message message;
    struct batch batches[DRAFT_BATCHES]; /* recipients point nowhere */
    enum recipient_state states[DRAFT_BATCHES][BATCH_RECIPIENTS_MAX];
    char subject[64];
    char last_reply[64];
    char reason[128]; /* of the last batch that has one */
};

MAYBE_UNUSED static void on_shown(void *ctx, int status, const struct message *message)
{
    struct shown *shown = ctx;
    shown->done = true;
    shown->status = status;
    if (status == 0) {
        shown->message = *message;
        (void)snprintf(shown->subject, sizeof(shown->subject), "%.*s", SPAN_FMT(message->subject));
        for (size_t i = 0; i < message->batch_count && i < DRAFT_BATCHES; i++) {
            shown->batches[i] = message->batches[i];
            if (message->batches[i].reason.len > 0) {
                (void)snprintf(shown->reason, sizeof(shown->reason), "%.*s",
                               SPAN_FMT(message->batches[i].reason));
            }
            for (size_t j = 0; j < message->batches[i].recipient_count; j++) {
                shown->states[i][j] = message->batches[i].recipients[j].state;
                (void)snprintf(shown->last_reply, sizeof(shown->last_reply), "%.*s",
                               SPAN_FMT(message->batches[i].recipients[j].last_reply));
            }
        }
    }
    loop_stop(shown->rig->loop);
}

MAYBE_UNUSED static int show_wait(struct handle *handle, const char *id, struct shown *out)
{
    *out = (struct shown){.rig = handle->rig};
    assert_int_equal(queue_show(handle->queue, span_of(id), on_shown, out), 0);
    RIG_WAIT(handle->rig, out->done);
    return out->status;
}

struct totals_seen {
    struct rig *rig;
    bool done;
    struct queue_totals totals;
    struct queue_depth depth;
};

MAYBE_UNUSED static void on_totals(void *ctx, int status, const struct queue_totals *totals)
{
    struct totals_seen *seen = ctx;
    assert_int_equal(status, 0);
    seen->done = true;
    seen->totals = *totals;
    if (totals->depth_count > 0) {
        seen->depth = totals->depths[0];
    }
    loop_stop(seen->rig->loop);
}

MAYBE_UNUSED static struct totals_seen totals_wait(struct handle *handle)
{
    struct totals_seen seen = {.rig = handle->rig};
    assert_int_equal(queue_totals(handle->queue, on_totals, &seen), 0);
    RIG_WAIT(handle->rig, seen.done);
    return seen;
}

#endif
