/* Enqueue: messages accepted together go to Redis in one transaction per shard: an MSET of all that
 * is only stored (records and small bodies), and the script, which decides and keeps the lists.
 * What it refuses it deletes again. Through the script itself all bytes would go three times and be
 * hashed once, which was half of an enqueue's cost.
 *
 * A group is filled by queue_enqueue(), written by queue_enqueue_flush() at the end of the turn (or
 * when it is large), answered by the script, and, where the server needs to be asked for
 * durability, finished by the WAIT that follows all groups of the flush. Callbacks run only in
 * finish_group().
 *
 * Group commit: Redis takes all that has come while it was busy (most of all with an fsync) in one
 * go, so a small group need not wait for the answer to the one before it. When some are on their
 * way, the next one waits for an answer and grows, since each is a script call: under load their
 * number follows how long an fsync takes, not the number of messages. */
#include "queue/queue_internal.h"
#include "queue/search.h"

#include "gateway/base/failpoint.h"
#include "queue/body.h"

#include <stdio.h>

enum {
    GROUP_MESSAGES_MAX = 256, /* one fsync, and some ms of Redis' time */
    GROUP_BYTES_MAX = 1024 * 1024,
    GROUP_WAITERS_FIRST = 4,
    GROUPS_RUNNING_MAX = 3, /* of each shard; the next waits until one is answered */
    RECORD_BYTES_MAX = 1024 * 1024,
    RECORD_BYTES_USUAL = 1000, /* reserved at once */
    WAIT_TIMEOUT_MS = 8000,    /* below the connection's own deadline */
};
#define INDEX_MAX_BYTES ((size_t)64 << 20)
#define WAITING_MAX_BYTES ((size_t)128 << 20)

struct enqueue_waiter {
    queue_enqueue_cb cb;
    void *ctx;
    int status;
    bool replayed;
    char id[MESSAGE_ID_MAX + 1];
    char *answer; /* of a replay; owned */
    size_t answer_len;
};

struct enqueue_group {
    struct enqueue_group *next; /* in a wait's list */
    struct queue *queue;
    uint32_t shard;
    struct redis_args keys;     /* tag and idempotency keys */
    struct redis_args messages; /* what the script is told */
    struct redis_args records;  /* the MSET before it */
    struct buf index;           /* records for the search index */
    struct enqueue_waiter *waiters;
    size_t count, cap;
    bool waits; /* a WAIT behind it is on its way and finishes it */
    bool answered;
    uint64_t answerer; /* the connection the answer came on */
    bool needs_wait;   /* that one asks for a WAIT */
    bool running;      /* counted in queue->enqueues_running */
};

/* One WAIT or WAITAOF and the groups it vouches for. */
struct enqueue_wait {
    struct queue *queue;
    uint64_t place; /* the connection it was sent on */
    struct enqueue_group *groups;
};

static struct enqueue_group *group_new(struct queue *queue, uint32_t shard)
{
    struct enqueue_group *group = mem_zero(sizeof(*group));
    group->queue = queue;
    group->shard = shard;
    queue_call_begin(shard, &group->keys);
    redis_args_init(&group->messages);
    redis_args_init(&group->records);
    redis_args_text(&group->records, "MSET");
    buf_init(&group->index, INDEX_MAX_BYTES);
    return group;
}

static size_t group_bytes(const struct enqueue_group *group)
{
    return buf_len(&group->messages.bytes) + buf_len(&group->records.bytes);
}

static void finish_group(struct enqueue_group *group)
{
    if (group->running) {
        ASSERT(group->queue->enqueues_running > 0);
        group->queue->enqueues_running--;
        queue_flush_later(group->queue); /* for those that waited for this */
    }
    for (size_t i = 0; i < group->count; i++) {
        struct enqueue_waiter *waiter = &group->waiters[i];
        struct queue_enqueued result = {
            .replayed = waiter->replayed,
            .id = span_of(waiter->id),
            .answer = span_make(waiter->answer, waiter->answer_len),
        };
        waiter->cb(waiter->ctx, waiter->status, &result);
        mem_free(waiter->answer);
    }
    mem_free(group->waiters);
    redis_args_release(&group->keys);
    redis_args_release(&group->messages);
    redis_args_release(&group->records);
    buf_release(&group->index);
    mem_free(group);
}

static void fail_group(struct enqueue_group *group, int status)
{
    for (size_t i = 0; i < group->count; i++) {
        group->waiters[i].status = status;
    }
}

static void take_replay(struct enqueue_waiter *waiter, const struct redis_value *reply)
{
    struct span id = redis_item(reply, 0)->text;
    struct span answer = redis_item(reply, 1)->text;
    waiter->replayed = true;
    (void)snprintf(waiter->id, sizeof(waiter->id), "%.*s", SPAN_FMT(id));
    waiter->answer = mem_dup(answer);
    waiter->answer_len = answer.len;
}

static void take_reply(struct enqueue_waiter *waiter, const struct redis_value *reply)
{
    enum { STORED, FULL, CONFLICT, BODY_MISSING, RESERVED };
    if (reply->type == REDIS_ARRAY) {
        take_replay(waiter, reply);
    } else if (reply->type != REDIS_INTEGER) {
        waiter->status = ERR_UNAVAILABLE;
    } else if (reply->integer == FULL) {
        waiter->status = ERR_FULL;
    } else if (reply->integer == CONFLICT) {
        waiter->status = ERR_CONFLICT;
    } else if (reply->integer == RESERVED) {
        waiter->status = ERR_BUSY;
    } else if (reply->integer != STORED) {
        waiter->status =
            ERR_UNAVAILABLE; /* its large body did not come whole: memory is full, a slot moved */
    }
}

static void wait_again(struct enqueue_group *group);

static void on_stored(void *ctx, int status, const struct redis_value *value)
{
    struct enqueue_group *group = ctx;
    FAILPOINT("enqueue-answered");
    group->answered = true;
    group->answerer = nodes_answering(group->queue->nodes);
    /* Where it ran, and not where it was sent to, says what a yes takes. */
    group->needs_wait = nodes_place_wait(group->queue->nodes, group->answerer) != REDIS_WAIT_NONE;
    if (status == ERR_PROTO) {
        status = ERR_UNAVAILABLE; /* the script failed before it wrote: its reads come first */
    }
    if (status != 0 && value->type == REDIS_ERROR &&
        span_search(value->text, SPAN_LIT("OOM")) < value->text.len) {
        status = ERR_FULL;
    }
    if (status != 0) {
        fail_group(group, status);
    } else {
        for (size_t i = 0; i < group->count; i++) {
            take_reply(&group->waiters[i], redis_item(value, i));
        }
        if (value->count > group->count) {
            queue_segment_sort(group->queue, group->shard,
                               redis_integer(redis_item(value, group->count)));
        }
    }
    if (group->waits) {
        return;
    }
    /* None was sent on its way, or it was answered already. */
    if (group->needs_wait && status == 0) {
        wait_again(group);
    } else {
        finish_group(group);
    }
}

bool queue_wait_reached(const struct queue *queue, const struct redis_value *value)
{
    /* WAIT answers how many replicas, WAITAOF [local fsyncs, replicas]. */
    if (value->type == REDIS_ARRAY) {
        return redis_integer(redis_item(value, 0)) >= 1;
    }
    return redis_integer(value) >= (queue->conf->replicas > 0 ? queue->conf->replicas : 1);
}

/* Nothing vouches for what the group stored. */
static void group_unsure(struct enqueue_group *group)
{
    for (size_t i = 0; i < group->count; i++) {
        struct enqueue_waiter *waiter = &group->waiters[i];
        waiter->status = waiter->status == 0 ? ERR_TIMEOUT : waiter->status;
        waiter->replayed = false;
    }
}

/* A WAIT vouches for what was answered before it on its own connection. A script that was sent to
 * another node meanwhile (Cluster), or had to be loaded again, gets a WAIT of its own. */
static void on_waited(void *ctx, int status, const struct redis_value *value)
{
    struct enqueue_wait *wait = ctx;
    FAILPOINT("enqueue-wait-answered");
    bool durable = status == 0 && queue_wait_reached(wait->queue, value);
    while (wait->groups != NULL) {
        struct enqueue_group *group = wait->groups;
        wait->groups = group->next;
        group->waits = false;
        if (!group->answered) {
            continue; /* its own answer asks for another */
        }
        if (!group->needs_wait && group->answerer != wait->place) {
            finish_group(group);
        } else if (group->answerer != wait->place && status != ERR_CLOSED) {
            wait_again(group);
        } else {
            if (!durable) {
                group_unsure(group);
            }
            finish_group(group);
        }
    }
    mem_free(wait);
}

/* Writes one group. It is the script's answer's (or the wait's) from here on; or it failed, and is
 * finished at the end of the turn because a caller of queue_enqueue() may be on the stack. */
static bool write_group(struct enqueue_group *group)
{
    struct queue *queue = group->queue;
    size_t key_count = group->keys.count;
    redis_args_number(&group->keys, (int64_t)(queue->conf->max_bytes / queue->conf->shards));
    redis_args_number(&group->keys, QUEUE_KEY_TTL_MS);
    redis_args_number(&group->keys, (int64_t)group->count);
    redis_args_number(&group->messages, queue->conf->retention_ms + QUEUE_INDEX_EXTRA_MS);
    redis_args_add(&group->messages, buf_span(&group->index));
    buf_release(&group->index);
    FAILPOINT("enqueue-before-write");
    int status = nodes_eval_behind(queue->nodes, group->shard, &group->records, SCRIPT_ENQUEUE,
                                   key_count, &group->keys, &group->messages, on_stored, group);
    if (status != 0) {
        fail_group(group, status == ERR_NOMEM || status == ERR_LIMIT ? ERR_UNAVAILABLE : status);
        group->next = queue->failed_groups;
        queue->failed_groups = group;
        return false;
    }
    group->running = true;
    queue->enqueues_running++;
    return true;
}

int queue_wait_send(struct queue *queue, uint64_t place, redis_cb cb, void *ctx)
{
    struct redis_args args;
    redis_args_init(&args);
    if (nodes_place_wait(queue->nodes, place) == REDIS_WAIT_AOF) {
        redis_args_text(&args, "WAITAOF");
        redis_args_number(&args, 1);
        redis_args_number(&args, 0);
    } else {
        redis_args_text(&args, "WAIT");
        redis_args_number(&args, queue->conf->replicas > 0 ? queue->conf->replicas : 1);
    }
    redis_args_number(&args, WAIT_TIMEOUT_MS);
    return nodes_call_place(queue->nodes, place, &args, cb, ctx);
}

/* One wait for the groups that were written, or none when none was. Takes `wait`. */
static void vouch(struct queue *queue, struct enqueue_wait *wait)
{
    if (wait->groups == NULL) {
        mem_free(wait);
    } else if (queue_wait_send(queue, wait->place, on_waited, wait) != 0) {
        /* The connection broke just now, or its output is full: the scripts' own answers ask for
         * another. */
        for (struct enqueue_group *group = wait->groups; group != NULL; group = group->next) {
            group->waits = false;
        }
        mem_free(wait);
    }
}

/* The group was answered on `answerer`; what vouches for it comes behind. */
static void wait_again(struct enqueue_group *group)
{
    struct enqueue_wait *wait = mem_zero(sizeof(*wait));
    *wait = (struct enqueue_wait){.queue = group->queue, .place = group->answerer, .groups = group};
    group->next = NULL;
    group->waits = true;
    if (queue_wait_send(group->queue, wait->place, on_waited, wait) != 0) {
        mem_free(wait);
        group_unsure(group);
        finish_group(group);
    }
}

static struct enqueue_wait *wait_new(struct queue *queue, uint32_t shard)
{
    struct enqueue_wait *wait = mem_zero(sizeof(*wait));
    wait->queue = queue;
    wait->place = nodes_place(queue->nodes, shard);
    return wait;
}

/* Writes a group; when a wait is to follow, adds it to those the wait vouches for. */
static void write_one(struct enqueue_group *group, struct enqueue_wait *wait)
{
    struct queue *queue = group->queue;
    /* Parked it will run somewhere, later. */
    group->waits = nodes_place_wait(queue->nodes, wait->place) != REDIS_WAIT_NONE;
    if (group->shard == queue->id_shard % queue->conf->shards) {
        queue->id_shard++; /* this shard has work to do: the next messages go to another */
    }
    if (write_group(group) && group->waits) {
        group->next = wait->groups;
        wait->groups = group;
    }
}

/* Writes the groups of `first_shard` .. whose commands go to the same connection as those of
 * `first_shard`, and one wait for all of them when the durability asks for it. */
static void write_groups(struct queue *queue, uint32_t first_shard, uint32_t end_shard)
{
    struct enqueue_wait *wait = wait_new(queue, first_shard);
    for (uint32_t shard = first_shard; shard < end_shard; shard++) {
        struct enqueue_group *group = queue->groups[shard];
        if (group != NULL && nodes_place(queue->nodes, shard) == wait->place) {
            queue->groups[shard] = NULL;
            write_one(group, wait);
        }
    }
    vouch(queue, wait);
}

void queue_group_send(struct enqueue_group *group)
{
    struct queue *queue = group->queue;
    uint32_t shard = group->shard;
    struct enqueue_wait *wait = wait_new(queue, shard);
    write_one(group, wait);
    vouch(queue, wait);
    queue_flush_later(queue); /* finishes one that could not be written */
}

void queue_group_fail(struct enqueue_group *group, int status)
{
    fail_group(group, status);
    finish_group(group);
}

void queue_enqueue_write(struct queue *queue)
{
    for (uint32_t shard = 0; shard < queue->conf->shards; shard++) {
        if (queue->groups[shard] != NULL) {
            write_groups(queue, shard, queue->conf->shards);
        }
    }
}

void queue_enqueue_flush(struct queue *queue)
{
    /* What is on its way to a server that does not answer is not waited for by the others. */
    if (queue->enqueues_running < GROUPS_RUNNING_MAX * (size_t)queue->conf->shards ||
        !queue_all_prompt(queue)) {
        queue_enqueue_write(queue);
    }
    while (queue->failed_groups != NULL) {
        struct enqueue_group *group = queue->failed_groups;
        queue->failed_groups = group->next;
        finish_group(group);
    }
}

void queue_enqueue_fail(struct queue *queue, int status)
{
    for (uint32_t shard = 0; shard < queue->conf->shards; shard++) {
        struct enqueue_group *group = queue->groups[shard];
        queue->groups[shard] = NULL;
        if (group != NULL) {
            fail_group(group, status);
            finish_group(group);
        }
    }
}

static int check_message(const struct queue *queue, const struct message *message,
                         const struct queue_idempotency *idempotency)
{
    if (message->batch_count == 0 || message->id.len == 0 || message->id.len > MESSAGE_ID_MAX ||
        span_find(message->id, '/') < message->id.len) {
        return ERR_INVAL;
    }
    /* The key and its message are written by one script, which may touch one shard only. */
    if (idempotency != NULL && idempotency->key.len > 0 &&
        (idempotency->key.len > QUEUE_KEY_MAX || idempotency->owner.len >= QUEUE_OWNER_MAX ||
         idempotency->scope.len > QUEUE_NAMES_MAX ||
         queue_shard_of_key(queue, idempotency->scope, idempotency->key) !=
             queue_shard_of_id(queue, message->id))) {
        return ERR_INVAL;
    }
    for (size_t i = 0; i < message->batch_count; i++) {
        const struct batch *batch = &message->batches[i];
        int status = queue_names_check(batch->lane, batch->backend, message->client);
        if (status != 0) {
            return status;
        }
        if (batch->number != i || batch->recipient_count > BATCH_RECIPIENTS_MAX) {
            return ERR_INVAL;
        }
    }
    return queue_names_check(message->lane, (struct span){0}, message->client);
}

/* A key of the group's shard, as an argument. */
static void add_key(struct enqueue_group *group, char kind, struct span name)
{
    char key[QUEUE_TAG_MAX + 4 + QUEUE_ENTRY_MAX];
    char tag[QUEUE_TAG_MAX];
    queue_tag(group->shard, tag);
    int len = snprintf(key, sizeof(key), "%s:%c:%.*s", tag, kind, SPAN_FMT(name));
    redis_args_add(&group->records, span_make(key, (size_t)len));
}

static void add_batch(struct enqueue_group *group, const struct message *message,
                      const struct batch *batch, int64_t due_ms, struct buf *record)
{
    char entry[QUEUE_ENTRY_MAX];
    char pair[QUEUE_NAMES_MAX + 2];
    char route[QUEUE_NAMES_MAX + 6];
    char sender[QUEUE_SENDER_MAX];
    queue_entry(message->id, batch->number, message_bytes(message), entry);
    int status = queue_pair_name(batch->lane, batch->backend, pair);
    ASSERT(status == 0);
    queue_pair_register(group->queue, group->shard, span_of(pair));
    struct batch_head head = {
        .state = due_ms > 0 ? 'W' : 'R',
        .due_ms = due_ms,
        .pair = span_of(pair),
        .client = queue_sender(message, sender),
    };
    buf_reset(record);
    status = queue_batch_store(&head, batch, record);
    group->records.status = group->records.status != 0 ? group->records.status : status;
    add_key(group, 'q', span_of(entry));
    redis_args_add(&group->records, buf_span(record));
    int len = snprintf(route, sizeof(route), "%s|%.*s", pair, SPAN_FMT(head.client));
    redis_args_add(&group->messages, span_make(route, (size_t)len));
}

static size_t open_recipients(const struct message *message)
{
    size_t count = 0;
    for (size_t i = 0; i < message->batch_count; i++) {
        count += message->batches[i].recipient_count;
    }
    return count;
}

void queue_key_add(uint32_t shard, struct redis_args *keys, const struct queue_idempotency *key)
{
    char name[QUEUE_TAG_MAX + 4 + QUEUE_NAMES_MAX + 2 + QUEUE_KEY_MAX + 1];
    char tag[QUEUE_TAG_MAX];
    queue_tag(shard, tag);
    size_t len = (size_t)snprintf(name, sizeof(name), "%s:i:%.*s:", tag, SPAN_FMT(key->scope));
    memcpy(name + len, key->key.data, key->key.len);
    redis_args_add(keys, span_make(name, len + key->key.len));
}

/* "owner|fingerprint" */
static void add_claim_to_key(struct redis_args *args, const struct queue_idempotency *key)
{
    char owner[QUEUE_OWNER_MAX + 1];
    int len = snprintf(owner, sizeof(owner), "%.*s|", SPAN_FMT(key->owner));
    redis_args_join(args, span_make(owner, (size_t)len), key->fingerprint);
}

/* Bytes that one shard takes of the lane's messages. */
static int64_t lane_limit(const struct queue_conf *conf, struct span lane)
{
    uint64_t most = conf->max_bytes / conf->shards;
    for (size_t i = 0; i < conf->lane_limit_count; i++) {
        if (span_eq(span_of(conf->lane_limits[i].lane), lane)) {
            return (int64_t)(most / 100 * conf->lane_limits[i].percent);
        }
    }
    return (int64_t)most;
}

/* The records of a message but for its batches. */
static void add_records(struct enqueue_group *group, const struct message *message,
                        struct span stored, struct span body)
{
    add_key(group, 'm', message->id);
    redis_args_add(&group->records, stored);
    if (body.len > 0) {
        add_key(group, 'b', message->id);
        redis_args_add(&group->records, body);
    }
    if (message->batch_count > 1) {
        add_key(group, 'o', message->id);
        redis_args_number(&group->records, (int64_t)message->batch_count);
    }
}

/* "*KiB", the end of the entries of a message with a large body. */
static void add_suffix(struct redis_args *args, const struct message *message)
{
    char entry[QUEUE_ENTRY_MAX];
    queue_entry(message->id, 0, message_bytes(message), entry);
    redis_args_text(args, entry + message->id.len + 2);
}

static void add_message(struct enqueue_group *group, const struct message *message, int64_t due_ms,
                        const struct queue_idempotency *idempotency)
{
    struct redis_args *args = &group->messages;
    bool keyed = idempotency != NULL && idempotency->key.len > 0;
    size_t bytes = message_bytes(message);
    size_t pieces = bytes > QUEUE_LARGE_BODY ? body_piece_count(bytes) : 0;
    struct span body = {0};
    struct buf record;
    char *room = NULL;
    buf_init(&record, RECORD_BYTES_MAX);
    int status = buf_reserve(&record, RECORD_BYTES_USUAL, &room);
    if (status == 0 && pieces == 0) {
        struct body_piece whole = {.id = message->id, .body_bytes = bytes};
        status = body_encode(group->queue->codec, &whole, message->prefix, message->body, &body);
    }
    uint64_t charge = queue_charge(pieces > 0 ? queue_large_bytes(bytes) : body.len,
                                   message->batch_count);
    status = status != 0 ? status : queue_message_store(message, charge, &record);
    args->status = args->status != 0 ? args->status : status;
    add_records(group, message, buf_span(&record), body);
    status = search_index(message, &group->index);
    args->status = args->status != 0 ? args->status : status;
    redis_args_add(args, message->id);
    redis_args_number(args, (int64_t)charge);
    redis_args_number(args, message->expires_ms);
    redis_args_number(args, (int64_t)open_recipients(message));
    redis_args_number(args, due_ms);
    redis_args_number(args, (keyed ? 1 : 0) + 2 * (int64_t)(pieces > 0 ? pieces + 1 : 0));
    redis_args_number(args, (int64_t)message->batch_count);
    redis_args_number(args, lane_limit(group->queue->conf, message->lane));
    for (size_t i = 0; i < message->batch_count; i++) {
        add_batch(group, message, &message->batches[i], due_ms, &record);
    }
    if (pieces > 0) {
        add_suffix(args, message);
    }
    if (keyed) {
        add_claim_to_key(args, idempotency);
        redis_args_add(args, idempotency->answer);
    }
    args->status = args->status != 0 ? args->status : group->records.status;
    if (keyed && args->status == 0) {
        queue_key_add(group->shard, &group->keys, idempotency);
    }
    buf_release(&record);
}

struct group_mark {
    size_t messages_bytes, messages_count;
    size_t records_bytes, records_count;
    size_t index_bytes;
};

static struct group_mark group_mark(const struct enqueue_group *group)
{
    return (struct group_mark){
        .messages_bytes = buf_len(&group->messages.bytes),
        .messages_count = group->messages.count,
        .records_bytes = buf_len(&group->records.bytes),
        .records_count = group->records.count,
        .index_bytes = buf_len(&group->index),
    };
}

/* Takes a message that could not be appended out of its group again. */
static void undo_message(struct enqueue_group *group, const struct group_mark *before)
{
    buf_truncate(&group->messages.bytes, before->messages_bytes);
    buf_truncate(&group->records.bytes, before->records_bytes);
    buf_truncate(&group->index, before->index_bytes);
    group->messages.count = before->messages_count;
    group->records.count = before->records_count;
    group->messages.status = 0;
    group->records.status = 0;
}

static int refused(int status)
{
    return status == ERR_NOMEM ? ERR_NOMEM : ERR_LIMIT;
}

static void add_waiter(struct enqueue_group *group, struct span id, queue_enqueue_cb cb, void *ctx)
{
    if (group->count == group->cap) {
        group->cap = group->cap == 0 ? GROUP_WAITERS_FIRST : 2 * group->cap;
        group->waiters = mem_realloc_try(group->waiters, group->cap * sizeof(*group->waiters));
        ASSERT(group->waiters != NULL);
    }
    struct enqueue_waiter *waiter = &group->waiters[group->count++];
    *waiter = (struct enqueue_waiter){0};
    waiter->cb = cb;
    waiter->ctx = ctx;
    (void)snprintf(waiter->id, sizeof(waiter->id), "%.*s", SPAN_FMT(id));
}

/* A group of its own, written when the body is. */
static int enqueue_large(struct queue *queue, uint32_t shard, const struct message *message,
                         int64_t due_ms, const struct queue_idempotency *idempotency,
                         queue_enqueue_cb cb, void *ctx)
{
    struct enqueue_group *group = group_new(queue, shard);
    add_message(group, message, due_ms, idempotency);
    int status = group->messages.status != 0 ? group->messages.status : group->keys.status;
    if (status != 0) {
        finish_group(group); /* nobody waits for it */
        return refused(status);
    }
    add_waiter(group, message->id, cb, ctx);
    queue_upload_begin(queue, group, shard, message);
    return 0;
}

static int enqueue_small(struct queue *queue, uint32_t shard, const struct message *message,
                         int64_t due_ms, const struct queue_idempotency *idempotency,
                         queue_enqueue_cb cb, void *ctx)
{
    if (queue->groups[shard] == NULL) {
        queue->groups[shard] = group_new(queue, shard);
    }
    struct enqueue_group *group = queue->groups[shard];
    struct group_mark before = group_mark(group);
    struct redis_args *keys = &group->keys;
    add_message(group, message, due_ms, idempotency);
    if (group->messages.status != 0 || keys->status != 0) {
        int status = group->messages.status != 0 ? group->messages.status : keys->status;
        undo_message(group, &before);
        return refused(status);
    }
    add_waiter(group, message->id, cb, ctx);
    queue_flush_later(queue);
    if (group->count == GROUP_MESSAGES_MAX || group_bytes(group) >= GROUP_BYTES_MAX) {
        /* Its callbacks run when Redis answers; a connection lost this moment is left to the flush.
         */
        if (nodes_takes(queue->nodes, shard)) {
            write_groups(queue, shard, shard + 1);
        }
    }
    return 0;
}

void queue_refuse(struct queue *queue, bool refuse)
{
    queue->refusing = refuse;
}

int queue_enqueue(struct queue *queue, const struct message *message, int64_t send_at_ms,
                  const struct queue_idempotency *idempotency, queue_enqueue_cb cb, void *ctx)
{
    int status = queue->closing ? ERR_CLOSED : check_message(queue, message, idempotency);
    if (status != 0) {
        return status;
    }
    /* A shard that is on its way to another node takes it too: it waits there a little. */
    uint32_t shard = queue_shard_of_id(queue, message->id);
    bool is_up = nodes_is_up(queue->nodes, shard);
    if (is_up ? !nodes_is_prompt(queue->nodes, shard) : !nodes_takes(queue->nodes, shard)) {
        return ERR_UNAVAILABLE;
    }
    if (queue->refusing) {
        return ERR_FULL;
    }
    size_t bytes = message_bytes(message);
    if (nodes_waiting_bytes(queue->nodes, shard) + queue->upload_bytes + bytes >
        WAITING_MAX_BYTES) {
        return ERR_LIMIT;
    }
    /* What is already past its expiry is not delayed behind it. */
    int64_t due_ms = send_at_ms > message->expires_ms ? message->expires_ms : send_at_ms;
    due_ms = due_ms > 0 ? due_ms : 0;
    return (bytes > QUEUE_LARGE_BODY ? enqueue_large : enqueue_small)(queue, shard, message, due_ms,
                                                                      idempotency, cb, ctx);
}
