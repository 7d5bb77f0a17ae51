/* The durable queue. It owns every Redis key and script.
 *
 * Must not know: SMTP, HTTP, services, routing. It stores what it is given, hands out what is due,
 * and never loses or doubles a batch.
 *
 *               enqueue            claim              start
 *   (nothing) ---------> READY ----------> CLAIMED ----------> STARTED
 *       | send_at        ^ ^ ^                |                   |
 *       v           due  | | |  lease ended,  |                   |
 *   DELAYED -------------+ | +- settle READY -+-------------------+
 *       ^          release |                  |                   |
 *       |      HELD -------+                  |                   |
 *       |       ^------------- settle HOLD ---+-------------------+
 *       +--------------------- settle DELAY --+-------------------+
 *              DONE <--------- settle DONE ---+-------------------+
 *
 * A lease that ends in STARTED makes its batch READY with an unknown outcome; three in a row HOLD
 * it. Operators move what nobody has claimed (work.h): READY and DELAYED to HELD, and so on.
 * Release goes back to DELAYED, not READY, while send_at or the time of a retry is still ahead.
 *
 * Keys, in each shard under its tag {hN} (README.md has all of them and what each holds):
 *   :m:ID message  :b:ID body  :q:ENTRY batch   the records
 *   :r: lists, :c: rotation   READY by lane, backend, client; :y: those that are expired
 *   :d: :h: sorted sets       DELAYED by due time, HELD by the time of holding
 *   :l :t                     leases by their end; token and state of each
 *   :x :f :z :a               open, finished, dead, all messages
 *   :s:                       the search index (search.h)
 *   :k                        sums that cannot be read off the above
 *
 * Cost: no step grows with the length of the queue but as the logarithm of a sorted set, KEYS and
 * SCAN are never used, and what one call looks at is bounded. README.md counts the commands.
 *   enqueue         one script a turn and shard; batches and recipients
 *   claim           one script a shard; batches and clients served
 *   start, settle   one script a turn and shard; batches
 *   show            batches of the message
 *   list, open      2,000 messages a shard at most; the page
 *   list, held      (lane, backend) pairs; the page; the same for delayed
 *   list, all       the same; far back, a step for each 300 messages on the way
 *   list, find      200 segments of the index a shard at most, 3,000 messages each; the page
 *   totals          (lane, backend) pairs, clients with work, leases in flight
 *   sweep           500 items a step at most
 *   operators       100 messages a step at most (work.h)
 *
 * Thread: a handle belongs to one loop; every call and callback runs there. Each loop has its own
 * handle with its own pipelined Redis connection; Redis is the only thing handles share.
 *
 * Calls and callbacks: a call returns 0 and its callback then runs exactly once, later, never
 * inside the call; or it returns an error and the callback never runs. Arguments are copied or
 * written to the wire before the call returns unless the comment says otherwise. Results lent to a
 * callback are valid until it returns.
 *
 * Statuses passed to callbacks: 0; ERR_UNAVAILABLE (Redis away, loading, read-only, refusing; the
 * outcome of a write is then unknown only if `ERR_TIMEOUT`); ERR_FULL (admission, or Redis is out
 * of memory); ERR_STALE (lease lost); ERR_NOTFOUND; ERR_CONFLICT (idempotency key with other
 * content); ERR_BUSY (idempotency key reserved by somebody else); ERR_CLOSED (handle closed). */
#ifndef HEAVE_QUEUE_QUEUE_H
#define HEAVE_QUEUE_QUEUE_H

#include "gateway/base/buf.h"
#include "gateway/base/loop.h"
#include "queue/message.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum queue_durability {
    QUEUE_FSYNC,
    QUEUE_REPLICATED,
    QUEUE_MEMORY,
};
/* "fsync", "replicated", "memory". */
const char *queue_durability_name(enum queue_durability durability);

/* How Redis is laid out. */
enum queue_topology {
    QUEUE_STANDALONE, /* one server: socket_path, or host and port */
    QUEUE_SENTINEL,   /* `hosts` are sentinels, which know where `master_name` is */
    QUEUE_CLUSTER,    /* `hosts` are some of the nodes, which know the others */
};
struct queue_host {
    const char *name;
    uint16_t port;
};

/* A lane that is accepted up to a part of max_bytes only. */
struct queue_lane_limit {
    const char *lane;
    uint32_t percent;
};

/* Where Redis is and how much it must promise. Plain values; strings live as long as the handle. */
struct queue_conf {
    enum queue_topology topology;
    const char *socket_path; /* a Unix socket; NULL: use host */
    const char *host;
    uint16_t port;
    const struct queue_host *hosts;
    size_t host_count;
    const char *master_name;
    int database;
    const char *user;              /* ACL user or NULL */
    const char *password;          /* or NULL */
    const char *sentinel_user;     /* of the sentinels, or NULL */
    const char *sentinel_password; /* or NULL */
    struct tls_context *tls;       /* for all connections, or NULL */
    enum queue_durability durability;
    uint32_t replicas;          /* at `replicated`: how many must have a message; 0 counts as 1 */
    uint32_t shards;            /* 1..32 */
    int64_t lease_ms;           /* how long a claim lasts without heartbeat */
    int64_t retention_ms;       /* how long the history of a finished message is kept */
    uint64_t history_bytes;     /* and how much of it, oldest end first out; 0: no limit */
    int64_t dead_letters_ms;    /* how long the bodies of messages with failed recipients are kept
                                   for a replay; never longer than retention_ms */
    uint64_t dead_letter_bytes; /* and how many bytes of them; 0: no limit */
    uint64_t max_bytes;         /* admission: bytes of waiting bodies and records; 0: no limit */
    const struct queue_lane_limit *lane_limits; /* lanes without: all of max_bytes */
    size_t lane_limit_count;
    bool managed;     /* the server belongs to us (embedded): settings are not checked, only used */
    int64_t start_ms; /* so long a server that was never up is expected to start, and why it is not
                         up is told only after it; 0: told at once */
    bool compression; /* of bodies above 1 KiB, where it saves something */
    const char *encryption_keys; /* bodies are sealed: text that keyring_parse() takes; or NULL */
};

struct queue;

/* Changes of the connection, for readiness, logs and metrics. */
struct queue_ops {
    /* up: connected, checked, scripts loaded. Otherwise `why` says what is wrong and, when a
     * setting is, the command that mends it. Called at each change. */
    void (*on_state)(void *ctx, bool up, const char *why);
    /* Work may be there: somebody enqueued or a sweep made batches due. A hint, coalesced. May be
     * NULL. */
    void (*on_ready_hint)(void *ctx);
    /* The sweeper found something worth a log line, with how many: "lease_ended",
     * "lease_ended_started" (of those, the ones whose outcome is unknown), "poison" (of those, the
     * ones that were held because it was the third time in a row), "expired", "removed" (history),
     * "dead_removed" (dead letters whose body went), "orphan" (what did not stand where its state
     * says and was put back), "lost_record" (a batch that has none any more), "unreadable" (a
     * stored record that cannot be decoded; the batch is held). May be NULL. */
    void (*on_sweep)(void *ctx, const char *what, int64_t count);
    /* A sentence about Redis for the log while work goes on: commands refused (OOM, READONLY, ...),
     * a server that answers slowly, a part of a Cluster away, a setting that could not be asked
     * for. Summarised when it repeats. May be NULL. */
    void (*on_warning)(void *ctx, const char *text);
};

/* Starts connecting; keeps trying with back-off until closed. `ops` and `conf` must outlive the
 * handle. */
struct queue *queue_open(struct loop *loop, const struct queue_conf *conf,
                         const struct queue_ops *ops, void *ctx);
/* Gives back this handle's claims that were not started, waits for what is on the wire (at most 5
 * s), then calls `on_closed` and frees the handle. */
void queue_close(struct queue *queue, void (*on_closed)(void *ctx), void *ctx);
/* Whether new messages are taken: some shard's server is up, answers within a second, and has the
 * replicas the durability needs. */
bool queue_is_up(const struct queue *queue);
/* Refuses new messages with ERR_FULL from now on, or takes them again; all else goes on. For a
 * server whose disk is nearly full. */
void queue_refuse(struct queue *queue, bool refuse);
/* Wall time by the server's clock, milliseconds since 1970, carried on by the monotonic clock
 * between the server's answers: what expiries, due times and gates are compared and written with,
 * whatever this machine's own clock says. That one is returned while the server's is not known,
 * which it is before anything claimed is handed out. */
int64_t queue_wall_ms(const struct queue *queue);
bool queue_clock_known(const struct queue *queue);

/* An idempotency key with its scope; all empty: none. */
struct queue_idempotency {
    struct span scope; /* the client's name */
    struct span key;   /* as sent, at most 255 bytes */
    struct span
        fingerprint;    /* hash of what was submitted: same key, other fingerprint is a conflict */
    struct span answer; /* stored and given back on replay */
    struct span owner;  /* who reserved the key, from queue_key_owner(); empty: nobody did */
};
#define QUEUE_KEY_MAX 255
#define QUEUE_OWNER_MAX 36

/* A new identifier, time-ordered, carrying its shard. With a key (scope and key; the rest is not
 * looked at) it is the key's shard, where the key is looked up and the message stored in one step;
 * NULL or an empty key: any. */
void queue_message_id(struct queue *queue, const struct queue_idempotency *idempotency,
                      char out[MESSAGE_ID_MAX + 1]);

struct queue_enqueued {
    bool replayed;      /* the key was known: nothing was enqueued */
    struct span id;     /* the message's id, or the first one's on replay */
    struct span answer; /* the stored answer on replay */
};
typedef void (*queue_enqueue_cb)(void *ctx, int status, const struct queue_enqueued *result);

#define QUEUE_BODY_COPIED ((size_t)64 * 1024)
/* Stores message, body and all batches in one atomic step. Names of lanes and backends must not
 * contain '|', those and the client's no line feed, and together they have at most 300 bytes
 * (ERR_INVAL otherwise). The callback runs when they are durable at the configured level: only then
 * may the peer be told yes. `send_at_ms` > 0 (wall): the batches start DELAYED. Everything is
 * copied before return, except prefix and body when they are above QUEUE_BODY_COPIED together:
 * those are sent in pieces and must stay until the callback. Errors: ERR_UNAVAILABLE (no
 * connection), ERR_LIMIT (too much waiting to be written: 128 MiB), ERR_FULL (queue_refuse()),
 * ERR_INVAL (no batch, a name, an id that was not made for this key), ERR_CLOSED. */
MUST_USE int queue_enqueue(struct queue *queue, const struct message *message, int64_t send_at_ms,
                           const struct queue_idempotency *idempotency, queue_enqueue_cb cb,
                           void *ctx);

/* A key is reserved while its submission is being taken, so that a second one with the same key
 * neither doubles the work nor is told something that may not come true:
 *
 *   (none) -- queue_key_begin --> reserved -- queue_enqueue, queue_key_finish --> known for 24 h
 *      ^                             |
 *      +--- queue_key_give_back, or `hold_ms` without either (its owner died) ---+
 *
 * queue_enqueue() with the reservation's `owner` makes it the final record in the step that stores
 * the message. A reservation that ended meanwhile is no harm: the enqueue then finds the key free
 * or known, or is told ERR_BUSY because somebody else has reserved it. */
enum queue_key_state {
    QUEUE_KEY_FRESH,    /* reserved for this owner */
    QUEUE_KEY_REPLAY,   /* known: id and answer */
    QUEUE_KEY_CONFLICT, /* known with another fingerprint */
    QUEUE_KEY_RUNNING,  /* reserved by somebody else */
};
struct queue_key_found {
    enum queue_key_state state;
    struct span id;
    struct span answer;
    int64_t held_ms; /* RUNNING: the reservation ends after so long at the latest */
};
typedef void (*queue_key_cb)(void *ctx, int status, const struct queue_key_found *found);

/* A name for the owner of a reservation, different each time. */
void queue_key_owner(struct queue *queue, char out[QUEUE_OWNER_MAX]);
/* Looks the key up and reserves it when it is free. Needs scope, key, fingerprint and owner. The
 * callback's status may be ERR_TIMEOUT: then it may be reserved. Errors: ERR_UNAVAILABLE, ERR_INVAL
 * (too long, no owner), ERR_CLOSED. */
MUST_USE int queue_key_begin(struct queue *queue, const struct queue_idempotency *key,
                             int64_t hold_ms, queue_key_cb cb, void *ctx);
/* Makes a reservation the final record though nothing is stored under it: its submission was a
 * repeat of the message `id`. */
void queue_key_finish(struct queue *queue, const struct queue_idempotency *key, struct span id);
/* Frees a key that this owner reserved and under which nothing was stored. Not after an enqueue
 * whose outcome is unknown (ERR_TIMEOUT, ERR_CLOSED): what may have been stored must stay known. */
void queue_key_give_back(struct queue *queue, const struct queue_idempotency *key);

/* A claimed batch. Memory belongs to the receiver until queue_lease_free(); settle or release
 * first. */
struct queue_lease {
    struct message message; /* all fields, body included; batches is NULL */
    struct batch batch;
    char token[24];       /* fencing token, text */
    int64_t lease_end_ms; /* monotonic loop time, moved by the heartbeat; INT64_MIN: lost */
    uint32_t epoch;       /* how often this batch was claimed, this time included */
    bool was_started;     /* an earlier claim ended in STARTED: its outcome is unknown */
    bool started;         /* queue_start() was called for this claim */
    uint32_t batch_total; /* batches of the message */
    uint64_t open_mask;   /* bit i: recipient i was RECIPIENT_QUEUED when claimed (others came to
                             their end earlier) */
    struct arena arena;   /* owns what the spans point to, except for a large body: */
    struct queue_body *shared_body;  /* shared by the claimed batches of one message, or NULL */
    size_t entry_bytes;              /* of a large body, as the names of its batches say; else 0 */
    uint64_t charge;                 /* what admission counted for the message */
    struct queue_lease *next, *prev; /* for the queue's heartbeat list */
};
void queue_lease_free(struct queue_lease **lease);

struct queue_want {
    const char *lane;
    const char *backend;
    uint32_t max_batches;
    bool expired_only; /* only batches whose message is past expires_ms: nothing can be sent now */
};
#define QUEUE_WANTS_MAX 128
/* `leases`: `count` leases the callback now owns (the array itself is lent). `closed_until_ms`
 * (wall, 0: open) belongs to want i: the backend's gate, see queue_gate_close(). */
typedef void (*queue_claim_cb)(void *ctx, int status, struct queue_lease **leases, size_t count,
                               const int64_t *closed_until_ms);

/* Claims ready batches for each want, fair between clients (hosts of a network) inside a lane,
 * oldest first inside a client; nothing for a want whose gate is closed, except batches whose
 * message is past expires_ms (to be settled as expired). The handle extends the leases of all its
 * claims by heartbeat until they are settled or released. Fewer come than wanted when their bodies
 * are large: about 8 MiB at a time. Up to QUEUE_WANTS_MAX wants. Errors: ERR_UNAVAILABLE,
 * ERR_CLOSED. */
MUST_USE int queue_claim(struct queue *queue, const struct queue_want *wants, size_t want_count,
                         queue_claim_cb cb, void *ctx);

/* Marks the batch STARTED: call before the first byte after which the service could accept it. The
 * command is on the wire to Redis before bytes written to a stream in the same turn are; the reply
 * is not waited for. Errors, after which the caller must not send: ERR_UNAVAILABLE (Redis is away),
 * ERR_STALE (the lease is over or lost: the batch may be somebody else's by now). */
MUST_USE int queue_start(struct queue *queue, struct queue_lease *lease);

/* What becomes of a claimed batch. Recipients whose state in lease->batch is no longer
 * RECIPIENT_QUEUED are finished with that state; the others stay in the batch, which goes where
 * `next` says. */
enum queue_next {
    QUEUE_NEXT_DONE,  /* no recipient is left open (asserted) */
    QUEUE_NEXT_READY, /* at once: throttled, no attempt used */
    QUEUE_NEXT_DELAY, /* at due_ms (wall) */
    QUEUE_NEXT_HOLD,  /* until released by hand; `reason` says why */
};
struct queue_settlement {
    enum queue_next next;
    int64_t due_ms;
    struct span reason;  /* stored with HELD; empty otherwise */
    struct span backend; /* NEXT_READY/DELAY to another backend; empty: stays */
};
typedef void (*queue_settle_cb)(void *ctx, int status);
/* Writes lease->batch (states, replies, attempts, account) and ends the claim, fenced by the token:
 * ERR_STALE when the lease was lost meanwhile (nothing is written). The lease stays the caller's to
 * free, after the call. When Redis is away the settlement waits in memory and is written on return
 * (bounded; then ERR_UNAVAILABLE). Errors: ERR_CLOSED. */
MUST_USE int queue_settle(struct queue *queue, struct queue_lease *lease,
                          const struct queue_settlement *settlement, queue_settle_cb cb, void *ctx);
/* Gives a claim back that was not started: READY again, in front, no attempt used. Frees nothing.
 * Several keep their order when the last one is given back first. */
void queue_release(struct queue *queue, struct queue_lease *lease);

/* Closes a gate (a backend, or "backend/account") for all replicas until `until_ms` (wall); claims
 * for a closed backend get nothing. A later time wins; an earlier one is ignored. `until_ms` 0
 * opens it. */
void queue_gate_close(struct queue *queue, const char *gate, int64_t until_ms, const char *reason);

/* One message with all its batches and recipients, for status. `message->body` is empty.
 * ERR_NOTFOUND when unknown or past retention. */
typedef void (*queue_show_cb)(void *ctx, int status, const struct message *message);
MUST_USE int queue_show(struct queue *queue, struct span id, queue_show_cb cb, void *ctx);

/* Pages of messages, newest first. An empty span, a 0 or a false matches everything; a message is
 * given when all that is asked for is true of it. `backend`, `domain` and the states must be true
 * of one batch and one recipient of it together.
 *
 * Which way is walked, and so what a page costs beyond its own messages, follows from the filter:
 *   message_id, text or address: the search index. Each term of a message is in it (search.h), from
 *     its acceptance until retention and four days later. Without unfinished_only also for sender,
 *     domain and tag.
 *   batch_states of HELD alone or DELAYED alone: those, held last or due last first; a message with
 *     batches held at different times is given for each.
 *   unfinished_only: the open messages, those that expire last first (within a lane: the newest).
 *   else: all messages in order of acceptance.
 * A call looks at a bounded number of messages; what does not match is passed over, so a page may
 * be short or empty and still not the last: only an empty `next_cursor` says so. */
struct queue_filter {
    struct span client;
    struct span lane;
    struct span backend;
    struct span sender;     /* address in From or reverse-path; here and below without regard to */
    struct span domain;     /* case; of a recipient */
    struct span tag;        /* one of its tags */
    struct span text;       /* any term, or the message's id */
    struct span address;    /* a recipient, the sender, or "@domain" */
    struct span message_id; /* Message-ID field, with or without <> */
    uint32_t recipient_states; /* bit 1 << enum recipient_state; 0: any */
    uint32_t batch_states;     /* bit 1 << enum batch_state; 0: any */
    int64_t since_ms;          /* accepted at that wall time or later */
    int64_t before_ms;         /* accepted before */
    bool unfinished_only;
    bool dead_only; /* dead letters, by the time they became that; not with unfinished_only */
    size_t limit;   /* 1..500 */
    /* Empty, or the `next_cursor` of the page before with the same filter. */
    struct span cursor;
};
typedef void (*queue_list_cb)(void *ctx, int status, const struct message *messages, size_t count,
                              struct span next_cursor);
/* Errors: ERR_INVAL (limit, cursor, a filter that is too long), ERR_UNAVAILABLE, ERR_CLOSED. */
MUST_USE int queue_list(struct queue *queue, const struct queue_filter *filter, queue_list_cb cb,
                        void *ctx);

/* Depth per lane and backend, kept by the scripts (never counted by scanning). */
struct queue_depth {
    struct span lane;
    struct span backend;
    int64_t batches[BATCH_STATE_COUNT]; /* by enum batch_state; DONE is always 0 here */
    /* By state, wall time, 0 without: READY, CLAIMED, STARTED: when the oldest one's message was
     * accepted; DELAYED: when the next one is due; HELD: since when the first one is held. */
    int64_t since_ms[BATCH_STATE_COUNT];
};
struct queue_totals {
    const struct queue_depth *depths;
    size_t depth_count;
    int64_t bytes;         /* of bodies and records held, as admission counts them */
    int64_t messages_open; /* messages with at least one open batch */
    int64_t dead_messages; /* with recipients that failed, expired or are unknown, body kept */
    int64_t dead_bytes;    /* of those that are finished */
    int64_t history_bytes; /* of the records of finished batches */
    int64_t
        recipients[RECIPIENT_STATE_COUNT]; /* since the data set began; QUEUED: those still open */
};
typedef void (*queue_totals_cb)(void *ctx, int status, const struct queue_totals *totals);
MUST_USE int queue_totals(struct queue *queue, queue_totals_cb cb, void *ctx);

/* What admission looks at: cheap at any depth. */
struct queue_levels {
    uint64_t bytes;           /* as max_bytes counts them: of the fullest shard, times the shards */
    uint64_t messages;        /* open ones */
    uint32_t memory_permille; /* of maxmemory, on the fullest server; 0 where there is none */
};
/* ERR_UNAVAILABLE (also while only a part of Redis is up). */
typedef void (*queue_levels_cb)(void *ctx, int status, const struct queue_levels *levels);
MUST_USE int queue_levels(struct queue *queue, queue_levels_cb cb, void *ctx);

#endif
