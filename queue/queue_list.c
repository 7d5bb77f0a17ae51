/* Pages of messages. Every shard is asked for what comes next on its walk (list.lua, find.lua); the
 * answers are merged, newest first; what is on the page is read (show.lua) and compared with the
 * filter; and each shard's position moves behind what was read of it.
 *
 * Invariant: within a shard the order of the walk is kept, whatever the ids say, so that a position
 * stands for all that came before it and paging neither leaves out nor repeats a message. */
#include "queue/queue_list.h"

#include <stdio.h>

enum {
    LIST_LIMIT_MAX = 500,
    LIST_WANT_MIN = 200, /* read when the filter needs the decoded message */
    LIST_SPARE = 16,
    LIST_LOOKS = 2000, /* messages passed over per shard and call */
};
#define LIST_MAX_BYTES ((size_t)256 << 20)

static void list_free(struct list *list)
{
    for (uint32_t shard = 0; shard < QUEUE_SHARDS_MAX; shard++) {
        mem_free(list->shards[shard].entries);
    }
    mem_free(list->page);
    arena_release(&list->arena);
    mem_free(list);
}

struct list_entry *list_entry_new(struct list *list, uint32_t shard, struct span id)
{
    struct list_shard *part = &list->shards[shard];
    if (part->count == list->want || id.len > MESSAGE_ID_MAX) {
        return NULL;
    }
    if (part->entries == NULL) {
        part->entries = mem_alloc(list->want * sizeof(*part->entries));
    }
    struct list_entry *entry = &part->entries[part->count++];
    *entry = (struct list_entry){.list = list, .shard = shard};
    (void)snprintf(entry->id, sizeof(entry->id), "%.*s", SPAN_FMT(id));
    return entry;
}

/* What the filter says of a decoded message. */

static bool recipient_wanted(const struct queue_filter *filter, const struct recipient *recipient)
{
    uint32_t states = filter->recipient_states;
    if (states != 0 && (states & 1u << recipient->state) == 0) {
        return false;
    }
    struct span address = recipient->address;
    struct span domain = filter->domain;
    return domain.len == 0 ||
           (address.len > domain.len && address.data[address.len - domain.len - 1] == '@' &&
            span_iends(address, domain));
}

static bool batch_wanted(const struct queue_filter *filter, const struct batch *batch)
{
    if ((filter->backend.len > 0 && !span_eq(filter->backend, batch->backend)) ||
        (filter->batch_states != 0 && (filter->batch_states & 1u << batch->state) == 0)) {
        return false;
    }
    if (filter->recipient_states == 0 && filter->domain.len == 0) {
        return true;
    }
    for (size_t i = 0; i < batch->recipient_count; i++) {
        if (recipient_wanted(filter, &batch->recipients[i])) {
            return true;
        }
    }
    return false;
}

static bool is_open(const struct message *message)
{
    for (size_t i = 0; i < message->batch_count; i++) {
        if (message->batches[i].state != BATCH_DONE) {
            return true;
        }
    }
    return false;
}

static bool term_wanted(const struct message *message, enum search_kind kind, struct span text)
{
    return text.len == 0 || search_matches(message, kind, search_term(text));
}

static bool message_wanted(const struct list *list, const struct message *message)
{
    const struct queue_filter *filter = &list->filter;
    bool good = (filter->client.len == 0 || span_eq(filter->client, message->client)) &&
                (filter->lane.len == 0 || span_eq(filter->lane, message->lane)) &&
                message->accepted_ms >= filter->since_ms &&
                (filter->before_ms == 0 || message->accepted_ms < filter->before_ms) &&
                (!filter->unfinished_only || is_open(message)) &&
                (list->walk == LIST_ONE || term_wanted(message, SEARCH_ANY, filter->text)) &&
                term_wanted(message, SEARCH_ADDRESS, filter->address) &&
                term_wanted(message, SEARCH_MESSAGE_ID, filter->message_id) &&
                term_wanted(message, SEARCH_SENDER, filter->sender) &&
                term_wanted(message, SEARCH_TAG, filter->tag);
    for (size_t i = 0; good && i < message->batch_count; i++) {
        if (batch_wanted(filter, &message->batches[i])) {
            return true;
        }
    }
    return false;
}

/* The end: what was read of the page, in order, until it is full. */

static void list_tell(struct list *list, const struct message *messages, size_t count)
{
    char cursor[QUEUE_SHARDS_MAX * LIST_POSITION_MAX];
    size_t len = 0;
    bool more = false;
    for (uint32_t shard = 0; shard < list->queue->conf->shards; shard++) {
        const char *position = list->shards[shard].position;
        more = more || strcmp(position, "0") != 0;
        len += (size_t)snprintf(cursor + len, sizeof(cursor) - len, "%s%s", shard > 0 ? "." : "",
                                position);
    }
    more = more && list->status == 0 && list->walk != LIST_ONE;
    list->cb(list->ctx, list->status, messages, list->status == 0 ? count : 0,
             more ? span_make(cursor, len) : (struct span){0});
}

static void list_finish(struct list *list)
{
    struct message *messages = mem_alloc((list->filter.limit + 1) * sizeof(*messages));
    size_t count = 0;
    size_t used[QUEUE_SHARDS_MAX] = {0};
    for (size_t i = 0; list->status == 0 && i < list->page_count; i++) {
        struct list_entry *entry = list->page[i];
        if (count == list->filter.limit || entry->status == ERR_LIMIT) {
            break;
        }
        used[entry->shard]++;
        memcpy(list->shards[entry->shard].position, entry->position, LIST_POSITION_MAX);
        if (entry->status == 0 && message_wanted(list, &entry->message)) {
            messages[count++] = entry->message;
        }
    }
    bool stuck = list->page_count > 0 && list->page[0]->status == ERR_LIMIT;
    list->status = list->status == 0 && stuck ? ERR_LIMIT : list->status;
    for (uint32_t shard = 0; shard < list->queue->conf->shards; shard++) {
        if (used[shard] == list->shards[shard].count) {
            memcpy(list->shards[shard].position, list->shards[shard].scanned, LIST_POSITION_MAX);
        }
    }
    list_tell(list, messages, count);
    mem_free(messages);
    list_free(list);
}

/* Reading the page's messages. */

/* Replies live only as long as their callback: the texts move to the list's arena. */
static int copy_view(struct arena *arena, const struct redis_value *value, struct redis_value *out)
{
    *out = (struct redis_value){.type = REDIS_ARRAY, .count = value->count};
    out->items = arena_alloc(arena, value->count * sizeof(*out->items));
    for (size_t i = 0; out->items != NULL && i < value->count; i++) {
        out->items[i].type = REDIS_TEXT;
        out->items[i].text = arena_dup(arena, redis_item(value, i)->text);
        if (out->items[i].text.data == NULL) {
            return ERR_LIMIT;
        }
    }
    return out->items != NULL ? 0 : ERR_LIMIT;
}

/* A record nobody can read is left out here; queue_show() says what is wrong with it. */
static int take_view(struct list_entry *entry, const struct redis_value *value)
{
    struct redis_value view;
    struct arena *arena = &entry->list->arena;
    if (value->type != REDIS_ARRAY || value->count == 0) {
        return ERR_NOTFOUND;
    }
    if (copy_view(arena, value, &view) != 0) {
        return ERR_LIMIT;
    }
    int status = queue_view_read(&view, span_of(entry->id), arena, &entry->message);
    bool full = status == ERR_LIMIT || status == ERR_NOMEM;
    return status != 0 ? (full ? ERR_LIMIT : ERR_NOTFOUND) : 0;
}

static void on_view(void *ctx, int status, const struct redis_value *value)
{
    struct list_entry *entry = ctx;
    struct list *list = entry->list;
    if (status == 0) {
        entry->status = take_view(entry, value);
    } else if (list->status == 0) {
        list->status = status == ERR_PROTO ? ERR_UNAVAILABLE : status;
    }
    list->waiting--;
    if (list->waiting == 0) {
        list_finish(list);
    }
}

static bool comes_first(const struct list_entry *a, const struct list_entry *b)
{
    return a->rank != b->rank ? a->rank > b->rank : strcmp(a->id, b->id) > 0;
}

/* What a shard may still have comes behind this rank; INT64_MIN when it has nothing, or the
 * position does not tell. */
static int64_t rank_left(const struct list *list, const struct list_shard *part)
{
    struct span rest = span_of(part->scanned);
    struct span score = span_cut(&rest, '~');
    uint64_t rank = 0;
    bool scored = list->walk == LIST_OPEN || list->walk == LIST_DEAD || list->walk == LIST_STATE;
    return scored && rest.len > 0 && span_to_u64(score, INT64_MAX, &rank) == 0 ? (int64_t)rank
                                                                               : INT64_MIN;
}

/* Of the shards' next entries, the one that comes first; NULL when what a shard did not give yet
 * may come before it. */
static struct list_entry *merge_next(struct list *list)
{
    struct list_entry *first = NULL;
    int64_t left = INT64_MIN;
    for (uint32_t shard = 0; shard < list->queue->conf->shards; shard++) {
        struct list_shard *part = &list->shards[shard];
        if (part->merged == part->count) {
            int64_t own = rank_left(list, part);
            left = own > left ? own : left;
        } else if (first == NULL || comes_first(&part->entries[part->merged], first)) {
            first = &part->entries[part->merged];
        }
    }
    if (first != NULL && first->rank < left) {
        return NULL;
    }
    if (first != NULL) {
        list->shards[first->shard].merged++;
    }
    return first;
}

static void read_page(struct list *list)
{
    list->page = mem_alloc((list->want + 1) * sizeof(*list->page));
    struct list_entry *entry = NULL;
    while (list->status == 0 && list->page_count < list->want &&
           (entry = merge_next(list)) != NULL) {
        list->page[list->page_count++] = entry;
    }
    list->waiting = 1; /* until all are asked for */
    for (size_t i = 0; list->status == 0 && i < list->page_count; i++) {
        entry = list->page[i];
        entry->status = ERR_NOTFOUND;
        if (queue_view_ask(list->queue, span_of(entry->id), on_view, entry) != 0) {
            list->status = ERR_UNAVAILABLE;
        } else {
            list->waiting++;
        }
    }
    list->waiting--;
    if (list->waiting == 0) {
        list_finish(list);
    }
}

/* Asking the shards. */

struct list_ask {
    struct list *list;
    uint32_t shard;
};

void list_position_set(char out[LIST_POSITION_MAX], struct span text)
{
    (void)snprintf(out, LIST_POSITION_MAX, "%.*s", SPAN_FMT(text.len > 0 ? text : SPAN_LIT("0")));
}

/* list.lua's answer. */
static void take_ids(struct list *list, uint32_t shard, const struct redis_value *value)
{
    struct list_shard *part = &list->shards[shard];
    list_position_set(part->scanned, redis_item(value, 0)->text);
    for (size_t i = 1; i + 2 < value->count; i += 3) {
        struct span id = redis_item(value, i)->text;
        if (list->walk == LIST_HISTORY && list->since[0] != '\0' && id.len > 0 &&
            strncmp(id.data, list->since, id.len) < 0) {
            list_position_set(part->scanned, SPAN_LIT("0")); /* nothing younger follows */
            return;
        }
        struct list_entry *entry = list_entry_new(list, shard, id);
        if (entry != NULL) {
            list_position_set(entry->position, redis_item(value, i + 1)->text);
            entry->rank = redis_integer(redis_item(value, i + 2));
        }
    }
}

static void on_ids(void *ctx, int status, const struct redis_value *value)
{
    struct list_ask *ask = ctx;
    struct list *list = ask->list;
    if (status != 0) {
        list->status = status == ERR_PROTO ? ERR_UNAVAILABLE : status;
    } else if (value->type != REDIS_ARRAY) {
        list->status = ERR_UNAVAILABLE;
    } else if (list->walk == LIST_INDEX) {
        queue_find_take(list, ask->shard, value);
    } else {
        take_ids(list, ask->shard, value);
    }
    mem_free(ask);
    list->waiting--;
    if (list->waiting == 0) {
        read_page(list);
    }
}

static int ask_shard(struct list *list, uint32_t shard)
{
    struct list_ask *ask = mem_zero(sizeof(*ask));
    ask->list = list;
    ask->shard = shard;
    int status = 0;
    if (list->walk == LIST_INDEX) {
        status = queue_find_ask(list, shard, on_ids, ask);
    } else {
        struct redis_args head;
        bool by_state = list->walk == LIST_STATE;
        queue_call_begin(shard, &head);
        redis_args_text(&head, list->shards[shard].position);
        redis_args_number(&head, (int64_t)list->want);
        if (by_state) {
            redis_args_text(&head, list->filter.batch_states == 1u << BATCH_HELD ? "h" : "d");
            redis_args_add(&head, list->filter.lane);
            redis_args_add(&head, list->filter.backend);
        } else {
            redis_args_number(&head, LIST_LOOKS);
            redis_args_text(&head, list->walk == LIST_HISTORY ? "a"
                                   : list->walk == LIST_OPEN  ? "x"
                                                              : "z");
            redis_args_add(&head, list->filter.client);
            redis_args_add(&head, list->filter.lane);
        }
        redis_args_text(&head, list->before);
        status = nodes_eval(list->queue->nodes, shard, by_state ? SCRIPT_LIST_STATE : SCRIPT_LIST,
                            1, &head, NULL, on_ids, ask);
    }
    if (status != 0) {
        mem_free(ask);
    }
    return status;
}

/* Digits, of a number that fits. */
static bool is_number(struct span text)
{
    uint64_t number = 0;
    return text.len < LIST_POSITION_MAX && span_to_u64(text, INT64_MAX, &number) == 0;
}

static bool entry_valid(struct span entry)
{
    struct span number = entry;
    struct span id = span_cut(&number, '/');
    for (size_t i = 0; i < number.len; i++) {
        if ((number.data[i] < '0' || number.data[i] > '9') && number.data[i] != '*') {
            return false;
        }
    }
    return entry.len < QUEUE_ENTRY_MAX && number.len > 0 && queue_id_time_ms(id) > 0;
}

static bool position_valid(enum list_walk walk, struct span text)
{
    if (text.len == 0 || span_eq(text, SPAN_LIT("0"))) {
        return true;
    }
    struct span behind = text;
    struct span number = span_cut(&behind, '~');
    switch (walk) {
    case LIST_HISTORY:
        return is_number(text);
    case LIST_OPEN:
    case LIST_DEAD:
        return is_number(number) && behind.len <= MESSAGE_ID_MAX && queue_id_time_ms(behind) > 0;
    case LIST_STATE:
        return is_number(number) && entry_valid(behind);
    case LIST_INDEX:
        return queue_find_position_valid(text);
    case LIST_ONE:
        return false;
    }
    UNREACHABLE();
}

/* A cursor is the shards' positions with dots between. Errors: ERR_INVAL. */
static int read_cursor(struct list *list, struct span cursor)
{
    size_t dots = 0;
    for (size_t i = 0; i < cursor.len; i++) {
        dots += cursor.data[i] == '.' ? 1 : 0;
    }
    if (cursor.len > 0 && dots != list->queue->conf->shards - 1) {
        return ERR_INVAL;
    }
    for (size_t shard = 0; cursor.len > 0 && shard <= dots; shard++) {
        struct span position = span_cut(&cursor, '.');
        if (!position_valid(list->walk, position)) {
            return ERR_INVAL;
        }
        if (position.len > 0) {
            list_position_set(list->shards[shard].position, position);
        }
    }
    return 0;
}

/* Preparing. */

static int keep(struct list *list, struct span *text)
{
    if (text->len > SEARCH_TERM_MAX) {
        return ERR_INVAL;
    }
    *text = arena_dup(&list->arena, *text);
    return text->data != NULL ? 0 : ERR_NOMEM;
}

static int keep_filter(struct list *list, const struct queue_filter *filter)
{
    list->filter = *filter;
    struct queue_filter *own = &list->filter;
    struct span *texts[] = {&own->client, &own->lane, &own->backend, &own->sender,    &own->domain,
                            &own->tag,    &own->text, &own->address, &own->message_id};
    int status = filter->limit == 0 || filter->limit > LIST_LIMIT_MAX ? ERR_INVAL : 0;
    for (size_t i = 0; status == 0 && i < sizeof(texts) / sizeof(texts[0]); i++) {
        status = keep(list, texts[i]);
    }
    return status;
}

static bool looks_like_id(struct span text)
{
    return queue_id_time_ms(text) > 0 && text.len > SEARCH_ULID_LEN + 1 &&
           text.len <= MESSAGE_ID_MAX && text.data[SEARCH_ULID_LEN] == '-';
}

/* The term to look up: the rarest that is asked for; empty when the index does not help. */
static struct span index_term(struct list *list)
{
    const struct queue_filter *filter = &list->filter;
    struct span texts[] = {filter->message_id, filter->text, filter->address};
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        if (search_term(texts[i]).len > 0) {
            return search_term(texts[i]);
        }
    }
    if (filter->unfinished_only) {
        return (struct span){0};
    }
    if (filter->sender.len > 0 || filter->tag.len > 0) {
        return search_term(filter->sender.len > 0 ? filter->sender : filter->tag);
    }
    char *room = filter->domain.len > 0 ? arena_alloc(&list->arena, filter->domain.len + 1) : NULL;
    if (room == NULL) {
        return (struct span){0};
    }
    room[0] = '@';
    memcpy(room + 1, filter->domain.data, filter->domain.len);
    return span_make(room, filter->domain.len + 1);
}

static void choose_walk(struct list *list)
{
    const struct queue_filter *filter = &list->filter;
    list->term = index_term(list);
    if (looks_like_id(span_trim(filter->text))) {
        list->walk = LIST_ONE;
    } else if (filter->dead_only) {
        list->walk = LIST_DEAD;
    } else if (list->term.len > 0) {
        list->walk = LIST_INDEX;
    } else if (filter->batch_states == 1u << BATCH_HELD ||
               filter->batch_states == 1u << BATCH_DELAYED) {
        list->walk = LIST_STATE;
    } else {
        list->walk = filter->unfinished_only ? LIST_OPEN : LIST_HISTORY;
    }
    /* Of what the walk gives some may be gone meanwhile; more when only the decoded message says
     * whether it is wanted. */
    bool by_state = list->walk == LIST_STATE;
    bool decoded = filter->sender.len > 0 || filter->domain.len > 0 || filter->tag.len > 0 ||
                   filter->recipient_states != 0 || (by_state && filter->client.len > 0) ||
                   (!by_state && (filter->backend.len > 0 || filter->batch_states != 0));
    list->want = filter->limit + (by_state || list->walk == LIST_INDEX ? LIST_SPARE : 0);
    list->want = decoded && list->want < LIST_WANT_MIN ? LIST_WANT_MIN : list->want;
    queue_id_floor(filter->before_ms, list->before);
    queue_id_floor(filter->since_ms, list->since);
}

static int ask_one(struct list *list)
{
    struct span id = span_trim(list->filter.text);
    struct list_entry *entry = list_entry_new(list, queue_shard_of_id(list->queue, id), id);
    list->page = mem_alloc(sizeof(*list->page));
    list->page[0] = entry;
    list->page_count = 1;
    list->waiting = 1;
    return queue_view_ask(list->queue, span_of(entry->id), on_view, entry);
}

static int list_start(struct list *list)
{
    if (list->walk == LIST_ONE) {
        return ask_one(list);
    }
    int status = 0;
    list->waiting = 1; /* until all are asked */
    for (uint32_t shard = 0; shard < list->queue->conf->shards && status == 0; shard++) {
        if (strcmp(list->shards[shard].position, "0") == 0) {
            memcpy(list->shards[shard].scanned, "0", 2);
            continue;
        }
        status = ask_shard(list, shard);
        list->waiting += status == 0 ? 1 : 0;
    }
    list->waiting--;
    if (list->waiting == 0) {
        return status != 0 ? status : ERR_INVAL; /* a cursor that is all at the end */
    }
    list->status = status; /* the answers already asked for end it */
    return 0;
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
    arena_init(&list->arena, LIST_MAX_BYTES);
    int status = keep_filter(list, filter);
    if (status == 0) {
        choose_walk(list);
        status = read_cursor(list, filter->cursor);
    }
    if (status == 0) {
        status = list_start(list);
    }
    if (status != 0) {
        list_free(list);
    }
    return status;
}
