/* Looking at the queue: one message, a page of messages, the depths. Answers are decoded into an
 * arena that lives until the callback has returned. */
#include "queue/queue_internal.h"

#include <stdio.h>
#include <stdlib.h>

enum {
    LIST_LIMIT_MAX = 500,
    LIST_LOOKS = 2000, /* messages passed over per shard and call */
    POSITION_MAX = 24,
    DEPTHS_MAX = 1024,
    BATCHES_MAX = 1000000,
};
#define VIEW_MAX_BYTES ((size_t)256 << 20)

/* The state a stored head and a lease mean together. */
static enum batch_state state_of(const struct batch_head *head, struct span lease)
{
    if (lease.len > 0) {
        return lease.data[0] == 's' ? BATCH_STARTED : BATCH_CLAIMED;
    }
    switch (head->state) {
    case 'W':
        return BATCH_DELAYED;
    case 'H':
        return BATCH_HELD;
    case 'D':
        return BATCH_DONE;
    default:
        return BATCH_READY; /* R and E */
    }
}

/* Decodes show.lua's reply. Spans point into the reply. */
static int decode_view(const struct redis_value *view, struct span id, struct arena *arena,
                       struct message *out)
{
    uint32_t batch_count = 0;
    struct message message = {.id = id};
    int status = queue_message_read(redis_item(view, 0)->text, &message, &batch_count);
    if (status != 0) {
        return status;
    }
    if (batch_count > BATCHES_MAX || view->count < 1 + 2 * (size_t)batch_count) {
        return ERR_INVAL;
    }
    message.batches = arena_alloc(arena, batch_count * sizeof(*message.batches));
    if (message.batches == NULL) {
        return ERR_NOMEM;
    }
    message.batch_count = batch_count;
    for (size_t i = 0; i < batch_count; i++) {
        struct batch_head head;
        struct batch *batch = &message.batches[i];
        status = queue_batch_read(redis_item(view, 1 + 2 * i)->text, arena, &head, batch);
        if (status != 0) {
            return status;
        }
        batch->state = state_of(&head, redis_item(view, 2 + 2 * i)->text);
        batch->due_ms = batch->state == BATCH_DELAYED ? head.due_ms : 0;
        batch->reason = head.reason;
    }
    *out = message;
    return 0;
}

/* Show. */

struct show {
    queue_show_cb cb;
    void *ctx;
    char id[MESSAGE_ID_MAX + 1];
};

static void on_shown(void *ctx, int status, const struct redis_value *value)
{
    struct show *show = ctx;
    struct message message = {0};
    struct arena arena;
    arena_init(&arena, VIEW_MAX_BYTES);
    if (status == ERR_PROTO) {
        status = ERR_UNAVAILABLE;
    }
    if (status == 0 && value->type != REDIS_ARRAY) {
        status = ERR_NOTFOUND;
    }
    if (status == 0) {
        status = decode_view(value, span_of(show->id), &arena, &message);
    }
    show->cb(show->ctx, status, status == 0 ? &message : NULL);
    arena_release(&arena);
    mem_free(show);
}

static int send_show(struct queue *queue, struct span id, redis_cb cb, void *ctx)
{
    struct redis_args head;
    uint32_t shard = queue_shard_of_id(queue, id);
    queue_call_begin(shard, &head);
    redis_args_add(&head, id);
    return nodes_eval(queue->nodes, shard, SCRIPT_SHOW, 1, &head, NULL, cb, ctx);
}

int queue_show(struct queue *queue, struct span id, queue_show_cb cb, void *ctx)
{
    if (queue->closing) {
        return ERR_CLOSED;
    }
    queue_flush_now(queue);
    struct show *show = mem_zero(sizeof(*show));
    show->cb = cb;
    show->ctx = ctx;
    /* An id that is too long is cut and then unknown, as it should be. */
    (void)snprintf(show->id, sizeof(show->id), "%.*s", SPAN_FMT(id));
    int status = send_show(queue, span_of(show->id), on_shown, show);
    if (status != 0) {
        mem_free(show);
    }
    return status;
}

/* List: a page of ids from every shard, merged newest first, then one show per message of the page.
 */

struct list_entry {
    char id[MESSAGE_ID_MAX + 1];
    char position[POSITION_MAX]; /* to go on behind this one, in its shard */
    uint32_t shard;
};

struct list {
    struct queue *queue;
    queue_list_cb cb;
    void *ctx;
    size_t limit;
    char client[QUEUE_NAMES_MAX + 1];
    char lane[QUEUE_NAMES_MAX + 1];
    char backend[QUEUE_NAMES_MAX + 1];
    bool unfinished_only;
    char positions[QUEUE_SHARDS_MAX][POSITION_MAX]; /* "" newest, "0" the end */
    char scanned[QUEUE_SHARDS_MAX][POSITION_MAX];   /* where the script stopped looking */
    struct list_entry *entries;
    size_t entry_count;
    size_t waiting; /* answers to come */
    size_t at;      /* the page's next message */
    int status;
    struct arena arena;
    struct message *messages;
    size_t message_count;
};

static void list_finish(struct list *list)
{
    char cursor[QUEUE_SHARDS_MAX * POSITION_MAX];
    size_t len = 0;
    bool more = false;
    for (uint32_t shard = 0; shard < list->queue->conf->shards; shard++) {
        more = more || strcmp(list->positions[shard], "0") != 0;
        len += (size_t)snprintf(cursor + len, sizeof(cursor) - len, "%s%s", shard > 0 ? "." : "",
                                list->positions[shard]);
    }
    struct span next = more && list->status == 0 ? span_make(cursor, len) : (struct span){0};
    list->cb(list->ctx, list->status, list->messages, list->status == 0 ? list->message_count : 0,
             next);
    arena_release(&list->arena);
    mem_free(list->entries);
    mem_free(list);
}

static bool list_wants(const struct list *list, const struct message *message)
{
    if (list->backend[0] == '\0') {
        return true;
    }
    for (size_t i = 0; i < message->batch_count; i++) {
        if (span_eq(message->batches[i].backend, span_of(list->backend))) {
            return true;
        }
    }
    return false;
}

/* Replies live only as long as their callback: the texts move to the list's arena. */
static int copy_view(struct arena *arena, const struct redis_value *value, struct redis_value *out)
{
    *out = (struct redis_value){.type = REDIS_ARRAY, .count = value->count};
    out->items = arena_alloc(arena, value->count * sizeof(*out->items));
    for (size_t i = 0; out->items != NULL && i < value->count; i++) {
        out->items[i].type = REDIS_TEXT;
        out->items[i].text = arena_dup(arena, redis_item(value, i)->text);
        if (out->items[i].text.data == NULL) {
            return ERR_NOMEM;
        }
    }
    return out->items != NULL ? 0 : ERR_NOMEM;
}

static void take_shown(struct list *list, const struct redis_value *value)
{
    struct redis_value view;
    struct message message = {0};
    struct span id = span_of(list->entries[list->at].id);
    if (copy_view(&list->arena, value, &view) != 0) {
        list->status = ERR_LIMIT;
        return;
    }
    /* A record nobody can read is left out here; queue_show() says what is wrong with it. */
    if (decode_view(&view, id, &list->arena, &message) == 0 && list_wants(list, &message)) {
        list->messages[list->message_count++] = message;
    }
}

static void on_listed_one(void *ctx, int status, const struct redis_value *value)
{
    struct list *list = ctx;
    if (status != 0) {
        list->status = list->status != 0 ? list->status
                                         : (status == ERR_PROTO ? ERR_UNAVAILABLE : status);
    } else if (value->type == REDIS_ARRAY && value->count > 0 && list->status == 0) {
        take_shown(list, value);
    }
    list->at++;
    list->waiting--;
    if (list->waiting == 0) {
        list_finish(list);
    }
}

/* ULIDs sort by time, so the larger id is the newer one. */
static int newer_first(const void *a, const void *b)
{
    return strcmp(((const struct list_entry *)b)->id, ((const struct list_entry *)a)->id);
}

/* Keeps the newest `limit` of what the shards gave and notes how far each shard got. */
static void cut_page(struct list *list)
{
    if (list->entry_count > 0) {
        qsort(list->entries, list->entry_count, sizeof(*list->entries), newer_first);
    }
    bool dropped[QUEUE_SHARDS_MAX] = {false};
    for (size_t i = list->limit; i < list->entry_count; i++) {
        dropped[list->entries[i].shard] = true;
    }
    list->entry_count = list->entry_count < list->limit ? list->entry_count : list->limit;
    for (uint32_t shard = 0; shard < list->queue->conf->shards; shard++) {
        if (!dropped[shard]) {
            memcpy(list->positions[shard], list->scanned[shard], POSITION_MAX);
        }
    }
    /* In a shard that gave more than was taken, go on behind the oldest one taken. */
    for (size_t i = 0; i < list->entry_count; i++) {
        struct list_entry *entry = &list->entries[i];
        if (dropped[entry->shard]) {
            memcpy(list->positions[entry->shard], entry->position, POSITION_MAX);
        }
    }
}

static void show_page(struct list *list)
{
    cut_page(list);
    list->messages = arena_alloc(&list->arena, (list->entry_count + 1) * sizeof(*list->messages));
    if (list->messages == NULL) {
        list->status = ERR_NOMEM;
    }
    size_t sent = 0;
    while (list->status == 0 && sent < list->entry_count) {
        if (send_show(list->queue, span_of(list->entries[sent].id), on_listed_one, list) != 0) {
            list->status = ERR_UNAVAILABLE;
            break;
        }
        sent++;
    }
    list->waiting = sent;
    if (sent == 0) {
        list_finish(list);
    }
}

struct list_ask {
    struct list *list;
    uint32_t shard;
};

static void take_ids(struct list *list, uint32_t shard, const struct redis_value *value)
{
    struct span scanned = redis_item(value, 0)->text;
    (void)snprintf(list->scanned[shard], POSITION_MAX, "%.*s", SPAN_FMT(scanned));
    if (scanned.len == 0) {
        memcpy(list->scanned[shard], "0", 2);
    }
    for (size_t i = 1; i + 1 < value->count; i += 2) {
        struct list_entry *entry = &list->entries[list->entry_count++];
        (void)snprintf(entry->id, sizeof(entry->id), "%.*s", SPAN_FMT(redis_item(value, i)->text));
        (void)snprintf(entry->position, POSITION_MAX, "%.*s",
                       SPAN_FMT(redis_item(value, i + 1)->text));
        entry->shard = shard;
    }
}

static void on_ids(void *ctx, int status, const struct redis_value *value)
{
    struct list_ask *ask = ctx;
    struct list *list = ask->list;
    if (status != 0) {
        list->status = status == ERR_PROTO ? ERR_UNAVAILABLE : status;
    } else if (value->type == REDIS_ARRAY && value->count <= 1 + 2 * list->limit) {
        take_ids(list, ask->shard, value);
    }
    mem_free(ask);
    list->waiting--;
    if (list->waiting == 0) {
        if (list->status == 0) {
            show_page(list);
        } else {
            list_finish(list);
        }
    }
}

static int ask_ids(struct list *list, uint32_t shard)
{
    struct list_ask *ask = mem_zero(sizeof(*ask));
    ask->list = list;
    ask->shard = shard;
    struct redis_args head;
    queue_call_begin(shard, &head);
    redis_args_text(&head, list->positions[shard]);
    redis_args_number(&head, (int64_t)list->limit);
    redis_args_number(&head, LIST_LOOKS);
    redis_args_text(&head, list->unfinished_only ? "1" : "");
    redis_args_text(&head, list->client);
    redis_args_text(&head, list->lane);
    int status = nodes_eval(list->queue->nodes, shard, SCRIPT_LIST, 1, &head, NULL, on_ids, ask);
    if (status != 0) {
        mem_free(ask);
    }
    return status;
}

/* A cursor is the shards' positions with dots between. Errors: ERR_INVAL. */
static int read_cursor(struct list *list, struct span cursor)
{
    for (uint32_t shard = 0; cursor.len > 0 && shard < list->queue->conf->shards; shard++) {
        struct span position = span_cut(&cursor, '.');
        uint64_t number = 0;
        if (position.len >= POSITION_MAX || span_to_u64(position, INT64_MAX, &number) != 0) {
            return ERR_INVAL;
        }
        (void)snprintf(list->positions[shard], POSITION_MAX, "%.*s", SPAN_FMT(position));
    }
    return cursor.len == 0 ? 0 : ERR_INVAL;
}

static int list_prepare(struct list *list, const struct queue_filter *filter)
{
    if (filter->limit == 0 || filter->limit > LIST_LIMIT_MAX ||
        filter->client.len > QUEUE_NAMES_MAX || filter->lane.len > QUEUE_NAMES_MAX ||
        filter->backend.len > QUEUE_NAMES_MAX) {
        return ERR_INVAL;
    }
    (void)snprintf(list->client, sizeof(list->client), "%.*s", SPAN_FMT(filter->client));
    (void)snprintf(list->lane, sizeof(list->lane), "%.*s", SPAN_FMT(filter->lane));
    (void)snprintf(list->backend, sizeof(list->backend), "%.*s", SPAN_FMT(filter->backend));
    list->unfinished_only = filter->unfinished_only;
    list->limit = filter->limit;
    return read_cursor(list, filter->cursor);
}

int queue_list(struct queue *queue, const struct queue_filter *filter, queue_list_cb cb, void *ctx)
{
    if (queue->closing || !nodes_any_up(queue->nodes)) {
        return queue->closing ? ERR_CLOSED : ERR_UNAVAILABLE;
    }
    queue_flush_now(queue);
    struct list *list = mem_zero(sizeof(*list));
    list->queue = queue;
    list->cb = cb;
    list->ctx = ctx;
    arena_init(&list->arena, VIEW_MAX_BYTES);
    int status = list_prepare(list, filter);
    if (status == 0) {
        list->entries = mem_alloc(queue->conf->shards * list->limit * sizeof(*list->entries));
        for (uint32_t shard = 0; shard < queue->conf->shards && status == 0; shard++) {
            if (strcmp(list->positions[shard], "0") == 0) {
                memcpy(list->scanned[shard], "0", 2);
                continue;
            }
            status = ask_ids(list, shard);
            list->waiting += status == 0 ? 1 : 0;
        }
    }
    if (list->waiting > 0) {
        list->status = status; /* the answers already asked for end it */
        return 0;
    }
    arena_release(&list->arena);
    mem_free(list->entries);
    mem_free(list);
    return status != 0 ? status : ERR_INVAL;
}

/* Totals: the shards' answers are added up. */

struct totals {
    struct queue *queue;
    queue_totals_cb cb;
    void *ctx;
    size_t waiting;
    int status;
    struct arena arena;
    struct queue_depth *depths;
    struct queue_totals sums;
    size_t depth_count;
};

static struct queue_depth *depth_of(struct totals *totals, struct span pair)
{
    struct span backend = pair;
    struct span lane = span_cut(&backend, '|');
    for (size_t i = 0; i < totals->depth_count; i++) {
        struct queue_depth *depth = &totals->depths[i];
        if (span_eq(depth->lane, lane) && span_eq(depth->backend, backend)) {
            return depth;
        }
    }
    if (totals->depth_count == DEPTHS_MAX) {
        return NULL;
    }
    struct queue_depth *depth = &totals->depths[totals->depth_count];
    depth->lane = arena_dup(&totals->arena, lane);
    depth->backend = arena_dup(&totals->arena, backend);
    if (depth->lane.data == NULL || depth->backend.data == NULL) {
        return NULL;
    }
    totals->depth_count++;
    return depth;
}

/* The time in a ULID: ten Crockford base32 characters of 48 bits (https://github.com/ulid/spec). 0
 * when it is none. */
static int64_t ulid_time_ms(struct span id)
{
    static const char digits[] = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    int64_t time_ms = 0;
    if (id.len < 10) {
        return 0;
    }
    for (size_t i = 0; i < 10; i++) {
        const char *found = id.data[i] != '\0' ? strchr(digits, id.data[i]) : NULL;
        if (found == NULL || (i == 0 && id.data[0] > '7')) {
            return 0;
        }
        time_ms = time_ms * 32 + (found - digits);
    }
    return time_ms;
}

static void add_depth(struct totals *totals, const struct redis_value *value, size_t at)
{
    struct queue_depth *depth = depth_of(totals, redis_item(value, at)->text);
    if (depth == NULL) {
        return;
    }
    depth->batches[BATCH_READY] += redis_integer(redis_item(value, at + 1));
    depth->batches[BATCH_CLAIMED] += redis_integer(redis_item(value, at + 2));
    depth->batches[BATCH_STARTED] += redis_integer(redis_item(value, at + 3));
    depth->batches[BATCH_DELAYED] += redis_integer(redis_item(value, at + 4));
    depth->batches[BATCH_HELD] += redis_integer(redis_item(value, at + 5));
    int64_t oldest_ms = ulid_time_ms(redis_item(value, at + 6)->text);
    if (oldest_ms > 0 && (depth->oldest_ready_ms == 0 || oldest_ms < depth->oldest_ready_ms)) {
        depth->oldest_ready_ms = oldest_ms;
    }
}

static void add_totals(struct totals *totals, const struct redis_value *value)
{
    struct queue_totals *sums = &totals->sums;
    sums->bytes += redis_integer(redis_item(value, 0));
    sums->messages_open += redis_integer(redis_item(value, 1));
    const struct redis_value *recipients = redis_item(value, 2);
    /* The counter of QUEUED counts all that were ever accepted; the others leave it. */
    sums->recipients[RECIPIENT_QUEUED] += redis_integer(redis_item(recipients, 0));
    for (size_t state = 1; state < RECIPIENT_STATE_COUNT; state++) {
        int64_t count = redis_integer(redis_item(recipients, state));
        sums->recipients[state] += count;
        sums->recipients[RECIPIENT_QUEUED] -= count;
    }
    const struct redis_value *ended = redis_item(value, 3);
    sums->dead_messages += redis_integer(redis_item(ended, 0));
    sums->dead_bytes += redis_integer(redis_item(ended, 1));
    sums->history_bytes += redis_integer(redis_item(ended, 2));
    for (size_t at = 4; at + 6 < value->count; at += 7) {
        add_depth(totals, value, at);
    }
}

static void on_totals(void *ctx, int status, const struct redis_value *value)
{
    struct totals *totals = ctx;
    if (status != 0) {
        totals->status = status == ERR_PROTO ? ERR_UNAVAILABLE : status;
    } else if (value->type == REDIS_ARRAY) {
        add_totals(totals, value);
    }
    totals->waiting--;
    if (totals->waiting > 0) {
        return;
    }
    totals->sums.depths = totals->depths;
    totals->sums.depth_count = totals->depth_count;
    totals->cb(totals->ctx, totals->status, totals->status == 0 ? &totals->sums : NULL);
    arena_release(&totals->arena);
    mem_free(totals);
}

int queue_totals(struct queue *queue, queue_totals_cb cb, void *ctx)
{
    if (queue->closing || !nodes_any_up(queue->nodes)) {
        return queue->closing ? ERR_CLOSED : ERR_UNAVAILABLE;
    }
    queue_flush_now(queue);
    struct totals *totals = mem_zero(sizeof(*totals));
    totals->queue = queue;
    totals->cb = cb;
    totals->ctx = ctx;
    arena_init(&totals->arena, VIEW_MAX_BYTES);
    totals->depths = arena_alloc(&totals->arena, DEPTHS_MAX * sizeof(*totals->depths));
    ASSERT(totals->depths != NULL);
    int status = 0;
    for (uint32_t shard = 0; shard < queue->conf->shards && status == 0; shard++) {
        struct redis_args head;
        if (!nodes_is_up(queue->nodes, shard)) {
            continue; /* the sums of the others are better than none */
        }
        queue_call_begin(shard, &head);
        status = nodes_eval(queue->nodes, shard, SCRIPT_TOTALS, 1, &head, NULL, on_totals, totals);
        totals->waiting += status == 0 ? 1 : 0;
    }
    if (totals->waiting > 0) {
        totals->status = status;
        return 0;
    }
    arena_release(&totals->arena);
    mem_free(totals);
    return status;
}
