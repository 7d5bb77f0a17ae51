/* Message, batch, recipient: the records of the queue and their stored form. Pure.
 *
 * A message is one accepted submission: envelope, what decisions need, and its body, stored once. A
 * batch is the unit of work: at most 50 recipients of one message that go to one backend in one
 * transaction. Every recipient of a message stands in exactly one batch.
 *
 * Must not know: Redis, loops, protocols. Thread: any; no state. Spans in decoded records point
 * into the bytes they were decoded from, or into the arena that was given.
 *
 * Stored form: a version byte, then fields as (varint length, bytes) in a fixed order; integers as
 * varints. A reader refuses a version it does not know (ERR_UNSUPPORTED) and anything cut or
 * overlong (ERR_INVAL). */
#ifndef HEAVE_QUEUE_MESSAGE_H
#define HEAVE_QUEUE_MESSAGE_H

#include "gateway/base/buf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Identifiers: 26 characters of a ULID plus "-" and the shard in hex (at most 2): opaque to all but
 * queue. */
#define MESSAGE_ID_MAX 31

/* More recipients per batch than any service takes are never made. */
#define BATCH_RECIPIENTS_MAX 50

/* Where one recipient stands. QUEUED covers READY, CLAIMED, STARTED, HELD and DELAYED of its batch;
 * the others are terminal, except UNKNOWN under a lane that retries. Values are stored: never
 * renumber. */
enum recipient_state {
    RECIPIENT_QUEUED = 0,
    RECIPIENT_DELIVERED = 1,
    RECIPIENT_FAILED = 2,
    RECIPIENT_EXPIRED = 3,
    RECIPIENT_SUPPRESSED = 4,
    RECIPIENT_CANCELLED = 5,
    RECIPIENT_UNKNOWN = 6,
};
#define RECIPIENT_STATE_COUNT 7

/* Where a batch stands (design.md section 3). Values are stored: never renumber. */
enum batch_state {
    BATCH_READY = 0,
    BATCH_CLAIMED = 1,
    BATCH_STARTED = 2,
    BATCH_DELAYED = 3,
    BATCH_HELD = 4,
    BATCH_DONE = 5,
};
#define BATCH_STATE_COUNT 6

/* "queued", "delivered", ... and "ready", "claimed", ...: the words of the API. */
const char *recipient_state_name(enum recipient_state state);
const char *batch_state_name(enum batch_state state);

enum message_flag {
    MESSAGE_8BIT = 1u << 0,     /* the body holds bytes above 127 (BODY=8BITMIME or found) */
    MESSAGE_SMTPUTF8 = 1u << 1, /* envelope or header need SMTPUTF8 (RFC 6531) */
    MESSAGE_BY_HOST = 1u << 2,  /* its client is a network: each host is a sender of its own */
};

struct recipient {
    struct span address; /* normalised: domain lower-case A-label, local part as given */
    enum recipient_state state;
    struct span last_reply; /* the service's last words, cut to 300 bytes; empty before any */
    int64_t at_ms;          /* wall time of the last change of state */
};

enum batch_flag {
    BATCH_MAYBE_SENT = 1u << 0, /* the last try may have been accepted: its answer was lost */
};

struct batch {
    uint32_t number;     /* 0, 1, ... within the message */
    struct span lane;    /* "alert", "normal", "bulk" or a configured name */
    struct span backend; /* name in the configuration */
    struct span account; /* which account or mailbox took it; empty before */
    uint32_t attempts;   /* deliveries tried, but for those that were throttled or never begun */
    uint32_t epoch; /* tries known to have failed: names the next one (ACS Operation-Id). Encoded */
    uint32_t flags; /* enum batch_flag. Encoded */
    struct recipient *recipients;
    size_t recipient_count;
    /* Filled by the queue when it reads a batch, not part of the encoded record: */
    enum batch_state state;
    int64_t due_ms;     /* DELAYED: wall time when it becomes READY */
    struct span reason; /* why it is HELD, or why an operator ended it; may be empty */
};

struct message {
    struct span id;     /* given by queue_message_id() */
    struct span client; /* name of the client that submitted it */
    struct span lane;
    struct span reverse_path; /* RFC 5321 MAIL FROM without <>; empty is the null reverse-path */
    struct span header_from;  /* address of the From field, for status and search */
    struct span message_id;   /* Message-ID field with <> */
    struct span subject;      /* decoded, cut to 200 bytes; kept for status */
    struct span source;       /* the host that submitted it: "192.0.2.1 name-it-gave"; or empty */
    struct span tags;         /* its tags, each followed by a line feed; or empty */
    int64_t accepted_ms;      /* wall time */
    int64_t expires_ms;       /* wall time */
    uint32_t flags;           /* enum message_flag */
    struct span prefix;       /* only when enqueued: fields that stand before `body`, so that adding
                               * them costs no copy of it; what is claimed has them in `body` */
    struct span body;         /* the complete RFC 5322 message with CR LF, as it will be sent */
    struct batch *batches;
    size_t batch_count;
};

/* Prefix and body together. */
static inline size_t message_bytes(const struct message *message)
{
    return message->prefix.len + message->body.len;
}

/* Appends the stored form of the message's own fields (not body, not batches).
 * Errors: ERR_LIMIT, ERR_NOMEM (the buf). */
MUST_USE int message_encode(const struct message *message, struct buf *out);
/* Reads it back; id, body and batches are left alone. Spans point into `stored`.
 * Errors: ERR_INVAL, ERR_UNSUPPORTED. */
MUST_USE int message_decode(struct span stored, struct message *out);

/* The same for one batch with its recipients. `arena` holds the recipient array; spans point into
 * `stored`. Errors: as above, and ERR_NOMEM, ERR_LIMIT (more than BATCH_RECIPIENTS_MAX recipients).
 */
MUST_USE int batch_encode(const struct batch *batch, struct buf *out);
MUST_USE int batch_decode(struct span stored, struct arena *arena, struct batch *out);

/* How many recipients are still RECIPIENT_QUEUED. */
size_t batch_open_count(const struct batch *batch);

#endif
