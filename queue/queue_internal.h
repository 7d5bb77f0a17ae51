/* What the files of the queue share: the handle, the stored heads, the script table. Private to
 * queue/.
 *
 * Names of batches: an *entry* is "id/n", or "id/n*KiB" when the body is above 64 KiB, so that the
 * claim script can bound what it hands out without reading bodies. Lists, leases and delays all
 * hold entries; README.md has the keys. */
#ifndef HEAVE_QUEUE_QUEUE_INTERNAL_H
#define HEAVE_QUEUE_QUEUE_INTERNAL_H

#include "queue/nodes.h"
#include "queue/queue.h"
#include "queue/redis.h"

enum queue_script {
    SCRIPT_BODY,
    SCRIPT_APPLY,
    SCRIPT_CLAIM,
    SCRIPT_DEDUP,
    SCRIPT_DIGEST_ADD,
    SCRIPT_DIGEST_TAKE,
    SCRIPT_ENQUEUE,
    SCRIPT_FIND,
    SCRIPT_GATE,
    SCRIPT_HEARTBEAT,
    SCRIPT_KEY,
    SCRIPT_LEVELS,
    SCRIPT_LIMIT_TAKE,
    SCRIPT_LIST,
    SCRIPT_LIST_STATE,
    SCRIPT_ORPHANS,
    SCRIPT_PICK,
    SCRIPT_SETTLE,
    SCRIPT_SHOW,
    SCRIPT_START,
    SCRIPT_SWEEP,
    SCRIPT_TOTALS,
    SCRIPT_COUNT,
};
/* queue_scripts.c: by enum queue_script. */
extern const struct redis_script queue_scripts[SCRIPT_COUNT];

#define QUEUE_SHARDS_MAX 32
#define QUEUE_NAMES_MAX 300 /* lane, backend and client together */
#define QUEUE_ENTRY_MAX 80
#define QUEUE_LARGE_BODY QUEUE_BODY_COPIED /* above: pieces, instead of passing through scripts */
#define QUEUE_TAG_MAX 8
#define QUEUE_KEY_TTL_MS (24 * 3600 * 1000) /* how long idempotency keys are known */

/* A (lane, backend) this connection has entered in the shard's set of pairs. */
struct queue_pair {
    struct queue_pair *next;
    uint32_t shard;
    char name[QUEUE_NAMES_MAX + 2];
};

struct body_codec;
struct enqueue_group;
struct keyring;
struct queue_upload;
struct settle_item;

/* Hints, and settlements when there are few, come no more often than this. */
#define QUEUE_PACE_MS 5

struct queue {
    struct loop *loop;
    const struct queue_conf *conf;
    const struct queue_ops *ops;
    void *ctx;
    struct nodes *nodes;
    struct redis_conf redis_conf;
    bool told_up;      /* what on_state last said */
    char instance[17]; /* random, part of every claim token */
    uint64_t claim_count;
    uint64_t owner_count;
    uint32_t id_shard; /* of the next messages */
    int64_t ulid_ms;   /* when the last id was made, and its first part */
    char ulid[27];
    uint32_t ids_given;
    uint32_t claim_shard;    /* where the next claim begins */
    struct keyring *keyring; /* or NULL */
    struct body_codec *codec;
    struct queue_upload *uploads; /* large bodies on their way in, the oldest first */
    size_t upload_bytes;          /* of those whose bodies callers still lend */
    struct queue_pair *pairs;
    size_t pair_count;
    struct enqueue_group *groups[QUEUE_SHARDS_MAX]; /* being filled in this turn */
    struct enqueue_group *failed_groups;            /* finished at the end of the turn */
    size_t enqueues_running;                        /* groups on their way */
    struct redis_args starts[QUEUE_SHARDS_MAX];     /* entries and tokens of this turn */
    struct settle_item *settle_first, *settle_last; /* not written yet */
    size_t settle_count;                            /* of those */
    size_t settles_running;                         /* groups on their way */
    size_t settle_bytes;                            /* of those and of unanswered ones */
    struct loop_task flush_task;
    struct loop_task hint_task;
    struct loop_timer hint_timer;
    int64_t hinted_ms;  /* when work was last hinted at */
    int64_t settled_ms; /* when settlements were last written */
    struct loop_timer heartbeat_timer;
    struct loop_timer sweep_timer;
    struct loop_timer clock_timer;
    int64_t clock_offset_ms; /* the server's wall clock minus our monotonic one */
    bool clock_known;
    int64_t next_walk_ms;    /* loop time */
    int64_t sweep_leases_ms; /* loop time from which on ended leases are swept */
    int64_t swept_ms;        /* loop time of the last round; 0: none since the connection came up */
    struct loop_timer settle_timer;
    struct loop_timer close_timer;
    struct queue_lease leases; /* sentinel of the ring of leases kept alive */
    size_t claims_running;
    bool refusing; /* queue_refuse() */
    bool closing;
    bool redis_closing;
    void (*on_closed)(void *ctx);
    void *closed_ctx;
};

/* queue.c */
/* "{h0}" */
void queue_tag(uint32_t shard, char out[QUEUE_TAG_MAX]);
uint32_t queue_shard_of_id(const struct queue *queue, struct span id);
/* The shard that a key's record stands in, and so the message that comes with it. */
uint32_t queue_shard_of_key(const struct queue *queue, struct span scope, struct span key);
/* "{h0}:b:ID" */
#define QUEUE_BODY_KEY_MAX (QUEUE_TAG_MAX + 4 + MESSAGE_ID_MAX)
void queue_body_key(uint32_t shard, struct span id, char out[QUEUE_BODY_KEY_MAX]);
/* Begins the head of a script call: the shard's tag as its first key. */
void queue_call_begin(uint32_t shard, struct redis_args *head);
/* Makes sure the pair is in the shard's set. */
void queue_pair_register(struct queue *queue, uint32_t shard, struct span pair);
/* Writes out what this turn collected, at its end. */
void queue_flush_later(struct queue *queue);
/* The same at once, before a command that must see it. No callback runs. */
void queue_flush_now(struct queue *queue);
void queue_close_step(struct queue *queue);
/* Whether every shard is up and answers without delay. */
bool queue_all_prompt(const struct queue *queue);
/* Ends no leases for five seconds (or one lease): the holders may have stood still, too, and get
 * the time to say what they did. */
void queue_leases_spare(struct queue *queue);

/* queue_clock.c: asks the server's time now and each second; `ctx` is the handle */
void queue_clock_ask(void *ctx);

/* queue_enqueue.c */
void queue_enqueue_write(struct queue *queue);
/* Writes unless an answer is awaited that will bring a fuller group; finishes what could not be
 * written. */
void queue_enqueue_flush(struct queue *queue);
void queue_enqueue_fail(struct queue *queue, int status);
/* Appends the name of the key's record. */
void queue_key_add(uint32_t shard, struct redis_args *keys, const struct queue_idempotency *key);
/* Sends the WAIT that the durability asks for after writes that ran, or will run, on `place`
 * (nodes_place(), nodes_answering(); nodes_place_wait() says whether one is needed). Errors: as
 * nodes_call_place(). */
MUST_USE int queue_wait_send(struct queue *queue, uint64_t place, redis_cb cb, void *ctx);
/* Whether its answer says that they are durable. */
bool queue_wait_reached(const struct queue *queue, const struct redis_value *value);
/* Writes a group that waited for nothing else; its callbacks run when Redis answers. */
void queue_group_send(struct enqueue_group *group);
/* Calls its callbacks now. */
void queue_group_fail(struct enqueue_group *group, int status);

/* queue_upload.c */
/* Sends the message's large body in pieces from the end of this turn on, and `group`, which is of
 * this message alone, behind it. Prefix and body are lent until the group's callback. */
void queue_upload_begin(struct queue *queue, struct enqueue_group *group, uint32_t shard,
                        const struct message *message);
void queue_upload_flush(struct queue *queue);
/* When the connections are closed. */
void queue_upload_fail(struct queue *queue);

/* queue_fetch.c */
/* A large body and the claimed batches that need it. */
struct queue_body {
    char *bytes;
    size_t len;
    size_t references;
};
/* `body`: one reference, or NULL with a status: ERR_INVAL (it cannot be read, ever: `why` is a
 * sentence), ERR_NOMEM, or what redis.h says about the connection. */
typedef void (*queue_fetch_cb)(void *ctx, int status, struct queue_body *body, const char *why);
/* Brings the body of `kib` KiB. Errors: as nodes_call(), and ERR_INVAL (`kib`). */
MUST_USE int queue_fetch_body(struct queue *queue, uint32_t shard, struct span id, size_t kib,
                              queue_fetch_cb cb, void *ctx);

/* The last lease that shares the body frees it. */
void queue_body_unref(struct queue_body **body);

/* queue_settle.c */
void queue_start_flush(struct queue *queue);
void queue_settle_write(struct queue *queue);
/* Writes unless an answer is awaited that will bring a fuller group. */
void queue_settle_flush(struct queue *queue);
void queue_settle_fail(struct queue *queue, int status);
/* Holds a batch whose record cannot be read, as it is. */
void queue_settle_unreadable(struct queue *queue, uint32_t shard, struct span entry,
                             const char *token, struct span pair);
void queue_heartbeat(struct queue *queue);

/* queue_read.c */
/* Asks for a message with its batches; the answer is for queue_view_read(). Errors: as nodes_eval.
 */
MUST_USE int queue_view_ask(struct queue *queue, struct span id, redis_cb cb, void *ctx);
/* Spans of `out` point into the answer and `arena`. Errors: ERR_INVAL, ERR_UNSUPPORTED, ERR_LIMIT,
 * ERR_NOMEM. */
MUST_USE int queue_view_read(const struct redis_value *view, struct span id, struct arena *arena,
                             struct message *out);
/* The time in an id, as wall milliseconds; 0 when it is none of queue_message_id(). */
int64_t queue_id_time_ms(struct span id);
/* What ids made at `time_ms` or later are not below; "" when it is 0 or less. */
void queue_id_floor(int64_t time_ms, char out[MESSAGE_ID_MAX + 1]);

/* queue_find.c */
/* Segments of the search index outlive the history by this: messages wait before they are finished,
 * and the history begins then. */
#define QUEUE_INDEX_EXTRA_MS ((int64_t)4 * 24 * 3600 * 1000)
/* Groups the records of a segment by slot, so that finding need not read all of it. */
void queue_segment_sort(struct queue *queue, uint32_t shard, int64_t number);

/* queue_record.c: the text heads in front of the stored forms, which the scripts read. */
struct batch_head {
    char state;      /* R ready, E ready and expired, W delayed, H held, D done */
    uint32_t starts; /* how often in a row a claim ended in STARTED without a word, at most 9 */
    uint32_t epoch;
    int64_t due_ms;
    struct span pair;   /* lane|backend */
    struct span client; /* queue_sender() */
    struct span reason; /* of H, and of what an operator ended */
};
void queue_entry(struct span id, uint32_t number, size_t body_len, char out[QUEUE_ENTRY_MAX]);
/* "lane|backend" into `out`. Errors: ERR_INVAL (see queue_enqueue). */
MUST_USE int queue_pair_name(struct span lane, struct span backend, char out[QUEUE_NAMES_MAX + 2]);
/* Whose list of READY batches the message's stand in, the unit of fairness: its client's; where the
 * client is a network, one of sixteen of that client, chosen by the host. */
#define QUEUE_SENDER_MAX (QUEUE_NAMES_MAX + 3)
struct span queue_sender(const struct message *message, char out[QUEUE_SENDER_MAX]);
MUST_USE int queue_names_check(struct span lane, struct span backend, struct span client);
/* What a large body is counted as: its size in whole KiB, which the entry names. A small one is
 * counted as it is stored. */
static inline size_t queue_large_bytes(size_t body_bytes)
{
    return (body_bytes + 1023) / 1024 * 1024;
}
uint64_t queue_charge(size_t charged_bytes, size_t batch_count);
MUST_USE int queue_batch_store(const struct batch_head *head, const struct batch *batch,
                               struct buf *out);
/* Errors: ERR_INVAL, ERR_UNSUPPORTED, ERR_LIMIT, ERR_NOMEM. Spans point into `stored`. */
MUST_USE int queue_batch_read(struct span stored, struct arena *arena, struct batch_head *out_head,
                              struct batch *out);
MUST_USE int queue_message_store(const struct message *message, uint64_t charge, struct buf *out);
/* What it was stored with; 0: version 0.1 did not say. */
uint64_t queue_message_charge(struct span stored);
MUST_USE int queue_message_read(struct span stored, struct message *out, uint32_t *out_batches);

#endif
