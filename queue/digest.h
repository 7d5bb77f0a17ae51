/* Messages of one kind collected in a window, to be sent as one when it ends. Public, as queue.h
 * is.
 *
 *   add ──► collection ── window over, or full ──► due ── take(hold) ──► composed ── enqueue ──►
 * done ▲                        │ └── held for hold_ms ────┘ (its gateway died)
 *
 * A collection is named by the id that the message made of it will have, which is the id of its
 * first message. It is handed out until it is ended; whoever sends it enqueues with an idempotency
 * key that belongs to the collection, so that it is sent once however often it is handed out (as
 * long as keys are known). Collected messages stand in frames as bodies do: packed, and sealed
 * where the queue's are.
 *
 * Thread, calls and callbacks: as in queue.h. */
#ifndef HEAVE_QUEUE_DIGEST_H
#define HEAVE_QUEUE_DIGEST_H

#include "queue/queue.h"

/* A larger message is for its sender to enqueue by itself. */
#define DIGEST_MESSAGE_MAX ((size_t)48 * 1024)
/* With so many messages, or so many bytes of messages, a collection is due at once: the mail it
 * becomes is one that services take. */
#define DIGEST_MESSAGES_MAX 200
#define DIGEST_BYTES_MAX ((size_t)1024 * 1024)

struct digest_item {
    struct span scope; /* the client's name */
    struct span key;   /* what makes messages of a kind; at most 64 bytes */
    int64_t window_ms;
    struct span id;    /* from queue_message_id() */
    struct span about; /* for whoever sends the collection; that of the first message is kept */
    struct span first; /* the message, in two parts */
    struct span second;
};
/* `id`: of the collection; `count`: messages in it. */
typedef void (*digest_add_cb)(void *ctx, int status, struct span id, size_t count);
/* Durable when the callback says 0, as queue_enqueue() is; after ERR_TIMEOUT it may be there.
 * Errors: ERR_UNAVAILABLE, ERR_LIMIT (above DIGEST_MESSAGE_MAX), ERR_INVAL (an argument),
 * ERR_FULL (queue_refuse()), ERR_NOMEM, ERR_CLOSED. */
MUST_USE int digest_add(struct queue *queue, const struct digest_item *item, digest_add_cb cb,
                        void *ctx);

struct digest_message {
    struct span bytes;
    int64_t at_ms; /* wall: when it was added */
};
struct digest {
    struct span id;
    struct span about;
    const struct digest_message *messages; /* oldest first */
    size_t count;
    uint32_t place; /* for digest_done() */
};
/* `digest` is NULL when none is due. ERR_INVAL, with id and about: a message cannot be read (a key
 * is missing); it will be handed out again. */
typedef void (*digest_take_cb)(void *ctx, int status, const struct digest *digest);
/* Errors: ERR_UNAVAILABLE, ERR_CLOSED. */
MUST_USE int digest_take(struct queue *queue, int64_t hold_ms, digest_take_cb cb, void *ctx);
/* It is enqueued. When that does not reach Redis, it is handed out again. */
void digest_done(struct queue *queue, uint32_t place, struct span id);

#endif
