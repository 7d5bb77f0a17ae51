/* Claim: asks the shards in turn until the wants are filled, and makes leases of what they hand
 * out.
 *
 *   ask ──► script's answer: batches, leased ──► MGET of their messages and small bodies
 *                                                   ──► large bodies, if any ──► the next shard
 *
 * A lease whose message or body could not be had (the connection broke in between) is not handed
 * out: it ends by itself and the batch is ready again. */
#include "queue/queue_internal.h"

#include "gateway/base/failpoint.h"
#include "queue/body.h"

#include <stdio.h>

enum {
    WHY_MAX = 240,
    BATCHES_MAX = 1000, /* per call to Redis: Lua's unpack takes some thousands */
};
/* What one claim brings, all shards together; the last body may pass it. */
#define BODIES_MAX_BYTES ((int64_t)8 << 20)
/* A small body is counted as this, as claim.lua counts it. */
#define SMALL_BODY_BYTES 16384
#define LEASE_MAX_BYTES ((size_t)128 << 20)

struct claim_want {
    char pair[QUEUE_NAMES_MAX + 2];
    struct span backend; /* in `pair` */
    uint32_t left;
    bool expired_only;
    int64_t closed_until_ms;
};

struct claim {
    struct queue *queue;
    queue_claim_cb cb;
    void *ctx;
    struct claim_want wants[QUEUE_WANTS_MAX];
    size_t want_count;
    uint32_t shard;       /* being asked */
    uint32_t shards_left; /* after this one */
    int64_t budget_bytes; /* of bodies, left */
    char token[24];
    int64_t lease_end_ms;
    struct queue_lease **leases; /* NULL: one whose body could not be had */
    size_t lease_count, lease_cap;
    size_t fetches; /* large bodies on their way */
    struct pending *pending;
    size_t pending_count;
};

/* A lease that waits for its message. */
struct pending {
    struct queue_lease *lease;
    size_t message; /* which one of those asked for */
    bool large;
};

/* The large body of one message, for the leases that need it: `count` of the claim's from `first`
 * on. */
struct fetch {
    struct claim *claim;
    size_t first, count;
};

static void ask_next(struct claim *claim);

static void claim_finish(struct claim *claim, int status)
{
    struct queue *queue = claim->queue;
    int64_t closed[QUEUE_WANTS_MAX];
    for (size_t i = 0; i < claim->want_count; i++) {
        closed[i] = claim->wants[i].closed_until_ms;
    }
    queue->claims_running--;
    size_t kept = 0;
    for (size_t i = 0; i < claim->lease_count; i++) {
        if (claim->leases[i] != NULL) {
            claim->leases[kept++] = claim->leases[i];
        }
    }
    claim->lease_count = kept;
    if (queue->closing) {
        /* Nobody is told any more: what was claimed goes back. */
        while (claim->lease_count > 0) {
            claim->lease_count--;
            queue_release(queue, claim->leases[claim->lease_count]);
            queue_lease_free(&claim->leases[claim->lease_count]);
        }
        status = ERR_CLOSED;
    } else if (claim->lease_count > 0) {
        status = 0; /* a later shard's failure does not take away what there is */
    }
    claim->cb(claim->ctx, status, claim->leases, claim->lease_count, closed);
    mem_free(claim->leases);
    mem_free(claim);
    if (queue->closing) {
        queue_close_step(queue);
    }
}

/* A lease keeps copies of its own: stored records and body, in its arena. */
static int fill_batch(struct queue_lease *lease, struct span entry, struct span stored)
{
    struct span id = span_cut(&entry, '/');
    struct span own_id = arena_dup(&lease->arena, id);
    struct span own_batch = arena_dup(&lease->arena, stored);
    if (own_id.data == NULL || own_batch.data == NULL) {
        return ERR_NOMEM;
    }
    struct batch_head head;
    lease->message.id = own_id;
    int status = queue_batch_read(own_batch, &lease->arena, &head, &lease->batch);
    if (status != 0) {
        return status;
    }
    lease->batch.state = BATCH_CLAIMED;
    lease->epoch = head.epoch + 1;
    lease->was_started = head.starts > 0;
    for (size_t i = 0; i < lease->batch.recipient_count; i++) {
        bool open = lease->batch.recipients[i].state == RECIPIENT_QUEUED;
        lease->open_mask |= open ? (uint64_t)1 << i : 0;
    }
    return 0;
}

static int fill_message(struct queue_lease *lease, const struct redis_value *stored)
{
    struct span id = lease->message.id;
    struct span own_message = arena_dup(&lease->arena, stored->text);
    if (own_message.data == NULL) {
        return ERR_NOMEM;
    }
    int status = queue_message_read(own_message, &lease->message, &lease->batch_total);
    lease->message.id = id;
    lease->charge = status == 0 ? queue_message_charge(own_message) : 0;
    return status;
}

/* A small body, out of its frame. Errors: ERR_NOMEM; ERR_INVAL with a sentence: it cannot be read.
 */
static int fill_body(struct queue *queue, struct queue_lease *lease,
                     const struct redis_value *stored, char why[WHY_MAX])
{
    struct body_piece whole = {.id = lease->message.id};
    struct span frame = stored->text;
    if (stored->type != REDIS_TEXT) {
        (void)snprintf(why, WHY_MAX, "The stored body is gone.");
        return ERR_INVAL;
    }
    int status = body_size(frame, &whole.body_bytes);
    if (status == 0 && !body_is_bare(frame) && whole.body_bytes > BODY_SMALL_BYTES) {
        status = ERR_INVAL; /* a damaged size must not take memory */
    }
    char *room = status == 0 ? arena_alloc(&lease->arena, whole.body_bytes + 1) : NULL;
    if (status == 0 && room == NULL) {
        return ERR_NOMEM;
    }
    status = status != 0 ? status : body_decode(queue->codec, &whole, frame, room);
    if (status != 0) {
        body_explain(status, frame, why, WHY_MAX);
        return status == ERR_NOMEM ? ERR_NOMEM : ERR_INVAL;
    }
    lease->message.body = span_make(room, whole.body_bytes);
    lease->charge = lease->charge > 0 ? lease->charge : queue_charge(frame.len, lease->batch_total);
    return 0;
}

/* Into the heartbeat's ring: the lease is complete. */
static void link_lease(struct claim *claim, struct queue_lease *lease)
{
    struct queue_lease *ring = &claim->queue->leases;
    lease->prev = ring->prev;
    lease->next = ring;
    ring->prev->next = lease;
    ring->prev = lease;
}

static void on_body(void *ctx, int status, struct queue_body *body, const char *why);

/* Asks for the body of the newest lease; leases of the same message that follow each other share
 * one answer. */
static void fetch_body(struct claim *claim, struct fetch **last)
{
    size_t index = claim->lease_count - 1;
    struct span id = claim->leases[index]->message.id;
    /* Only neighbours: a batch of another message may stand between two of this one. */
    if (*last != NULL && (*last)->first + (*last)->count == index &&
        span_eq(claim->leases[(*last)->first]->message.id, id)) {
        (*last)->count++;
        return;
    }
    struct fetch *fetch = mem_zero(sizeof(*fetch));
    *fetch = (struct fetch){.claim = claim, .first = index, .count = 1};
    if (queue_fetch_body(claim->queue, claim->shard, id, claim->leases[index]->entry_bytes / 1024,
                         on_body, fetch) != 0) {
        mem_free(fetch);
        queue_lease_free(&claim->leases[index]);
        claim->lease_count--;
        *last = NULL;
        return;
    }
    claim->fetches++;
    *last = fetch;
}

static void keep_lease(struct claim *claim, struct queue_lease *lease)
{
    if (claim->lease_count == claim->lease_cap) {
        claim->lease_cap = claim->lease_cap == 0 ? 16 : claim->lease_cap * 2;
        claim->leases = mem_realloc_try(claim->leases,
                                        claim->lease_cap * sizeof(struct queue_lease *));
        ASSERT(claim->leases != NULL);
    }
    claim->leases[claim->lease_count++] = lease;
    char pair[QUEUE_NAMES_MAX + 2];
    if (queue_pair_name(lease->batch.lane, lease->batch.backend, pair) != 0) {
        return;
    }
    for (size_t i = 0; i < claim->want_count; i++) {
        if (strcmp(claim->wants[i].pair, pair) == 0 && claim->wants[i].left > 0) {
            claim->wants[i].left--;
            return;
        }
    }
}

/* The route in a stored head, whatever follows it: enough to hold the batch where people look for
 * it. */
static struct span pair_of_stored(struct span stored)
{
    size_t space = span_find(stored, ' ');
    struct span rest = span_make(stored.data + space, stored.len - space);
    struct span route = span_trim(span_cut(&rest, '\n'));
    size_t first = span_find(route, '|');
    if (first == route.len) {
        return SPAN_LIT("|");
    }
    size_t second = span_find(span_make(route.data + first + 1, route.len - first - 1), '|');
    return span_make(route.data, first + 1 + second);
}

static void give_up_batch(struct claim *claim, struct span entry, struct span pair)
{
    struct queue *queue = claim->queue;
    queue_settle_unreadable(queue, claim->shard, entry, claim->token, pair);
    if (queue->ops->on_sweep != NULL) {
        queue->ops->on_sweep(queue->ctx, "unreadable", 1);
    }
}

/* Holds a batch whose record is good and whose body is not, with the reason. The claim ends. */
static void hold_lease(struct claim *claim, struct queue_lease **lease, const char *why)
{
    struct queue *queue = claim->queue;
    struct queue_settlement held = {.next = QUEUE_NEXT_HOLD, .reason = span_of(why)};
    /* What cannot be written now ends with its lease, and is claimed and held again. */
    int status = queue_settle(queue, *lease, &held, NULL, NULL);
    if (status == 0 && queue->ops->on_sweep != NULL) {
        queue->ops->on_sweep(queue->ctx, "unreadable", 1);
    }
    queue_lease_free(lease);
}

/* What claim.lua counted this entry as: "id/n*KiB" names a large body's size. */
static int64_t body_bytes(struct span entry)
{
    uint64_t kib = 0;
    (void)span_cut(&entry, '*');
    return span_to_u64(entry, INT64_MAX / 1024, &kib) == 0 ? (int64_t)kib * 1024 : SMALL_BODY_BYTES;
}

/* The name of the message's record or body, as an argument. */
static void add_key(struct redis_args *args, uint32_t shard, char kind, struct span id)
{
    char key[QUEUE_BODY_KEY_MAX];
    char tag[QUEUE_TAG_MAX];
    queue_tag(shard, tag);
    int len = snprintf(key, sizeof(key), "%s:%c:%.*s", tag, kind, SPAN_FMT(id));
    redis_args_add(args, span_make(key, (size_t)len));
}

/* Which message of those asked for this is; asks for it when it is none of the last. Batches of one
 * message stand near each other; one asked for twice does no harm. */
static size_t ask_for_message(const struct claim *claim, struct redis_args *args, struct span id)
{
    enum { LOOK_BACK = 16 };
    for (size_t i = 0; i < claim->pending_count && i < LOOK_BACK; i++) {
        const struct pending *other = &claim->pending[claim->pending_count - 1 - i];
        if (span_eq(other->lease->message.id, id)) {
            return other->message;
        }
    }
    size_t index = (args->count - 1) / 2;
    add_key(args, claim->shard, 'm', id);
    add_key(args, claim->shard, 'b', id); /* nil when it is large */
    return index;
}

/* A batch the script has leased. */
static void take_batch(struct claim *claim, struct span entry, struct span stored,
                       struct redis_args *args)
{
    struct queue_lease *lease = mem_zero(sizeof(*lease));
    bool large = span_find(entry, '*') < entry.len;
    arena_init(&lease->arena, LEASE_MAX_BYTES);
    claim->budget_bytes -= body_bytes(entry);
    memcpy(lease->token, claim->token, sizeof(lease->token));
    lease->lease_end_ms = claim->lease_end_ms;
    lease->entry_bytes = large ? (size_t)body_bytes(entry) : 0;
    int status = fill_batch(lease, entry, stored);
    if (status == 0) {
        size_t message = ask_for_message(claim, args, lease->message.id);
        claim->pending[claim->pending_count++] = (struct pending){
            .lease = lease, .message = message, .large = large};
        return;
    }
    queue_lease_free(&lease);
    if (status != ERR_NOMEM) { /* then the lease ends by itself */
        give_up_batch(claim, entry, pair_of_stored(stored));
    }
}

/* Its message's record cannot be read. */
static void give_up_lease(struct claim *claim, const struct queue_lease *lease)
{
    char entry[QUEUE_ENTRY_MAX];
    char pair[QUEUE_NAMES_MAX + 2];
    queue_entry(lease->message.id, lease->batch.number, lease->entry_bytes, entry);
    if (queue_pair_name(lease->batch.lane, lease->batch.backend, pair) == 0) {
        give_up_batch(claim, span_of(entry), span_of(pair));
    }
}

static void take_message(struct claim *claim, struct pending *pending,
                         const struct redis_value *message, const struct redis_value *body,
                         struct fetch **last)
{
    struct queue_lease *lease = pending->lease;
    char why[WHY_MAX];
    int status = fill_message(lease, message);
    if (status == ERR_NOMEM) {
        queue_lease_free(&lease);
        return;
    }
    if (status != 0) {
        give_up_lease(claim, lease);
        queue_lease_free(&lease);
        return;
    }
    if (pending->large) {
        keep_lease(claim, lease);
        fetch_body(claim, last);
        return;
    }
    status = fill_body(claim->queue, lease, body, why);
    if (status == 0) {
        keep_lease(claim, lease);
        link_lease(claim, lease);
    } else if (status == ERR_INVAL) {
        hold_lease(claim, &lease, why);
    } else {
        queue_lease_free(&lease);
    }
}

static void drop_pending(struct claim *claim)
{
    mem_free(claim->pending);
    claim->pending = NULL;
    claim->pending_count = 0;
}

/* `value`: record and small body of each message asked for. */
static void on_messages(void *ctx, int status, const struct redis_value *value)
{
    struct claim *claim = ctx;
    struct fetch *last = NULL;
    for (size_t i = 0; i < claim->pending_count; i++) {
        struct pending *pending = &claim->pending[i];
        if (status != 0) {
            queue_lease_free(&pending->lease);
        } else {
            take_message(claim, pending, redis_item(value, 2 * pending->message),
                         redis_item(value, 2 * pending->message + 1), &last);
        }
    }
    drop_pending(claim);
    if (claim->fetches == 0) {
        ask_next(claim);
    }
}

/* Takes what the script leased and asks for what belongs to it. */
static void take_batches(struct claim *claim, const struct redis_value *batches)
{
    struct redis_args args;
    redis_args_init(&args);
    redis_args_text(&args, "MGET");
    claim->pending = mem_zero((batches->count / 2 + 1) * sizeof(*claim->pending));
    for (size_t i = 0; i + 1 < batches->count; i += 2) {
        take_batch(claim, batches->items[i].text, batches->items[i + 1].text, &args);
    }
    if (claim->pending_count == 0) {
        redis_args_release(&args);
        on_messages(claim, 0, NULL);
    } else if (nodes_call(claim->queue->nodes, claim->shard, &args, on_messages, claim) != 0) {
        on_messages(claim, ERR_UNAVAILABLE, NULL);
    }
}

static void share_body(const struct fetch *fetch, struct queue_body *body)
{
    struct claim *claim = fetch->claim;
    body->references = fetch->count;
    for (size_t i = 0; i < fetch->count; i++) {
        struct queue_lease *lease = claim->leases[fetch->first + i];
        lease->shared_body = body;
        lease->message.body = span_make(body->bytes, body->len);
        lease->charge = lease->charge > 0 ? lease->charge
                                          : queue_charge(body->len, lease->batch_total);
        link_lease(claim, lease);
    }
}

static void on_body(void *ctx, int status, struct queue_body *body, const char *why)
{
    struct fetch *fetch = ctx;
    struct claim *claim = fetch->claim;
    FAILPOINT("claim-body-answered");
    if (status == 0) {
        share_body(fetch, body);
    } else {
        for (size_t i = 0; i < fetch->count; i++) {
            struct queue_lease **lease = &claim->leases[fetch->first + i];
            if (status == ERR_INVAL) {
                hold_lease(claim, lease, why);
            } else {
                queue_lease_free(lease); /* the lease ends by itself and the batch is ready again */
            }
        }
    }
    mem_free(fetch);
    claim->fetches--;
    if (claim->fetches == 0) {
        ask_next(claim);
    }
}

static void on_claimed(void *ctx, int status, const struct redis_value *value)
{
    struct claim *claim = ctx;
    FAILPOINT("claim-answered");
    if (status == ERR_CLOSED || (status != 0 && claim->shards_left == 0)) {
        claim_finish(claim, status == ERR_PROTO ? ERR_UNAVAILABLE : status);
        return;
    }
    if (status != 0) {
        ask_next(claim); /* its server is gone or refuses; the others may have work */
        return;
    }
    const struct redis_value *closed = redis_item(value, 0);
    for (size_t i = 0; i < claim->want_count; i++) {
        int64_t until = redis_integer(redis_item(closed, i));
        struct claim_want *want = &claim->wants[i];
        want->closed_until_ms = until > want->closed_until_ms ? until : want->closed_until_ms;
    }
    const struct redis_value *batches = redis_item(value, 1);
    if (batches->type == REDIS_ARRAY && batches->count > 0) {
        take_batches(claim, batches);
    } else {
        ask_next(claim);
    }
}

static int ask(struct claim *claim)
{
    struct queue *queue = claim->queue;
    struct redis_args head;
    struct redis_args wants;
    FAILPOINT("claim-before-write");
    claim->lease_end_ms = loop_now_ms(queue->loop) + queue->conf->lease_ms;
    queue_call_begin(claim->shard, &head);
    redis_args_number(&head, queue->conf->lease_ms);
    redis_args_text(&head, claim->token);
    redis_args_number(&head, claim->budget_bytes);
    redis_args_number(&head, (int64_t)claim->want_count);
    redis_args_init(&wants);
    uint32_t room = BATCHES_MAX;
    for (size_t i = 0; i < claim->want_count; i++) {
        uint32_t most = claim->wants[i].left < room ? claim->wants[i].left : room;
        room -= most;
        redis_args_text(&wants, claim->wants[i].pair);
        redis_args_add(&wants, claim->wants[i].backend);
        redis_args_number(&wants, claim->wants[i].expired_only ? -(int64_t)most : most);
    }
    return nodes_eval(queue->nodes, claim->shard, SCRIPT_CLAIM, 1, &head, &wants, on_claimed,
                      claim);
}

static bool wants_more(const struct claim *claim)
{
    for (size_t i = 0; i < claim->want_count; i++) {
        if (claim->wants[i].left > 0) {
            return true;
        }
    }
    return false;
}

/* The next shard whose server is up. False when all had their turn. */
static bool next_shard(struct claim *claim)
{
    const struct queue *queue = claim->queue;
    while (claim->shards_left > 0) {
        claim->shards_left--;
        claim->shard = (claim->shard + 1) % queue->conf->shards;
        if (nodes_is_up(queue->nodes, claim->shard)) {
            return true;
        }
    }
    return false;
}

static void ask_next(struct claim *claim)
{
    if (claim->queue->closing || claim->budget_bytes <= 0 || !wants_more(claim) ||
        !next_shard(claim)) {
        claim_finish(claim, 0);
        return;
    }
    if (ask(claim) != 0) {
        claim_finish(claim, ERR_UNAVAILABLE);
    }
}

int queue_claim(struct queue *queue, const struct queue_want *wants, size_t want_count,
                queue_claim_cb cb, void *ctx)
{
    ASSERT(want_count > 0 && want_count <= QUEUE_WANTS_MAX);
    if (queue->closing || !nodes_any_up(queue->nodes)) {
        return queue->closing ? ERR_CLOSED : ERR_UNAVAILABLE;
    }
    struct claim *claim = mem_zero(sizeof(*claim));
    claim->queue = queue;
    claim->cb = cb;
    claim->ctx = ctx;
    claim->want_count = want_count;
    claim->budget_bytes = BODIES_MAX_BYTES;
    int status = 0;
    for (size_t i = 0; i < want_count && status == 0; i++) {
        struct claim_want *want = &claim->wants[i];
        struct span lane = span_of(wants[i].lane);
        status = queue_pair_name(lane, span_of(wants[i].backend), want->pair);
        want->backend = span_of(want->pair + lane.len + 1);
        want->left = wants[i].max_batches;
        want->expired_only = wants[i].expired_only;
    }
    claim->shard = queue->claim_shard++ % queue->conf->shards; /* asked last */
    claim->shards_left = queue->conf->shards;
    queue->claim_count++;
    (void)snprintf(claim->token, sizeof(claim->token), "%.12s%llx", queue->instance,
                   (unsigned long long)(queue->claim_count & 0xffffffffffu));
    queue_settle_write(queue); /* what was given back can be claimed again */
    if (status == 0) {
        status = next_shard(claim) ? ask(claim) : ERR_UNAVAILABLE;
    }
    if (status != 0) {
        mem_free(claim);
        return status;
    }
    queue->claims_running++;
    return 0;
}
