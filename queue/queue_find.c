/* The search index in Redis (search.h has its layout): ":s:t", the tail that enqueue.lua appends
 * to, and ":s:N", the segments it became, each as large as 400,000 bytes and what the last group
 * added.
 *
 * A segment never changes its records, so that sorting it is only a matter of speed: whoever's
 * enqueue made it does it, and should he not, whoever finds it unsorted. Two who do it at once
 * write the same.
 *
 * A position sN~R: go on in segment N with those of the term's records that stand before the R-th;
 * sN: with segment N. Neither changes when a tail becomes a segment and is sorted. */
#include "queue/queue_list.h"

#include <stdio.h>

enum {
    FIND_SEGMENTS = 200,             /* per shard and call */
    FIND_BYTES = 1024 * 1024,        /* of records; exceeded by one segment at most */
    FIND_SINCE_SLACK_MS = 60 * 1000, /* ids are made a little before they are appended */
    SEGMENT_MAX_BYTES = 128 * 1024 * 1024,
    KEY_MAX = QUEUE_TAG_MAX + 24,
};

/* Sorting. */

struct sorting {
    struct queue *queue;
    uint32_t shard;
    char key[KEY_MAX];
};

static void on_segment(void *ctx, int status, const struct redis_value *value)
{
    struct sorting *sorting = ctx;
    struct buf sorted;
    buf_init(&sorted, SEGMENT_MAX_BYTES);
    if (status == 0 && value->type == REDIS_TEXT && search_seal(value->text, &sorted) == 0) {
        struct redis_args args;
        redis_args_init(&args);
        redis_args_text(&args, "SET");
        redis_args_text(&args, sorting->key);
        redis_args_add(&args, buf_span(&sorted));
        redis_args_text(&args, "XX");
        redis_args_text(&args, "KEEPTTL");
        /* What fails here is left for who finds it. */
        status = nodes_call(sorting->queue->nodes, sorting->shard, &args, NULL, NULL);
    }
    buf_release(&sorted);
    mem_free(sorting);
}

void queue_segment_sort(struct queue *queue, uint32_t shard, int64_t number)
{
    char tag[QUEUE_TAG_MAX];
    struct sorting *sorting = mem_zero(sizeof(*sorting));
    sorting->queue = queue;
    sorting->shard = shard;
    queue_tag(shard, tag);
    (void)snprintf(sorting->key, sizeof(sorting->key), "%s:s:%lld", tag, (long long)number);
    struct redis_args args;
    redis_args_init(&args);
    redis_args_text(&args, "GET");
    redis_args_text(&args, sorting->key);
    if (nodes_call(queue->nodes, shard, &args, on_segment, sorting) != 0) {
        mem_free(sorting);
    }
}

/* Finding. */

/* Takes "sN" or "sN~R" apart; R is UINT64_MAX without. Errors: ERR_INVAL. */
static int read_position(struct span text, struct span *out_number, uint64_t *out_record)
{
    struct span record = text;
    struct span number = span_cut(&record, '~');
    uint64_t value = 0;
    *out_number = (struct span){0};
    *out_record = UINT64_MAX;
    if (text.len == 0) {
        return 0;
    }
    if (number.len == 0 || number.data[0] != 's') {
        return ERR_INVAL;
    }
    *out_number = span_make(number.data + 1, number.len - 1);
    int status = span_to_u64(*out_number, UINT32_MAX, &value);
    return status == 0 && record.len > 0 ? span_to_u64(record, UINT32_MAX, out_record) : status;
}

bool queue_find_position_valid(struct span text)
{
    struct span number;
    uint64_t record = 0;
    return text.len < LIST_POSITION_MAX && read_position(text, &number, &record) == 0;
}

int queue_find_ask(struct list *list, uint32_t shard, redis_cb cb, void *ctx)
{
    struct span number;
    uint64_t record = 0;
    int64_t since_ms = list->filter.since_ms - FIND_SINCE_SLACK_MS;
    if (read_position(span_of(list->shards[shard].position), &number, &record) != 0) {
        return ERR_INVAL;
    }
    char hash[SEARCH_HASH_BYTES];
    search_hash_bytes(search_hash(list->term), hash);
    struct redis_args head;
    queue_call_begin(shard, &head);
    redis_args_add(&head, number);
    if (record != UINT64_MAX) {
        redis_args_number(&head, (int64_t)record);
    } else {
        redis_args_text(&head, "");
    }
    redis_args_add(&head, span_make(hash, sizeof(hash)));
    redis_args_number(&head, search_slot(search_hash(list->term)));
    redis_args_number(&head, since_ms > 0 ? since_ms : 0);
    redis_args_number(&head, list->filter.before_ms);
    redis_args_number(&head, (int64_t)list->want);
    redis_args_number(&head, FIND_SEGMENTS);
    redis_args_number(&head, FIND_BYTES);
    return nodes_eval(list->queue->nodes, shard, SCRIPT_FIND, 1, &head, NULL, cb, ctx);
}

void queue_find_take(struct list *list, uint32_t shard, const struct redis_value *value)
{
    struct list_shard *part = &list->shards[shard];
    list_position_set(part->scanned, redis_item(value, 0)->text);
    const struct redis_value *unsorted = redis_item(value, 1);
    for (size_t i = 0; i < unsorted->count; i++) {
        queue_segment_sort(list->queue, shard, redis_integer(redis_item(unsorted, i)));
    }
    for (size_t i = 2; i + 1 < value->count; i += 2) {
        char ulid[SEARCH_ULID_LEN + 1];
        char id[MESSAGE_ID_MAX + 1];
        if (!search_ulid(redis_item(value, i)->text, ulid)) {
            continue;
        }
        /* A message stands in the shard its id names. */
        (void)snprintf(id, sizeof(id), "%s-%x", ulid, shard & 0xff);
        struct list_entry *entry = list_entry_new(list, shard, span_of(id));
        if (entry != NULL) {
            list_position_set(entry->position, redis_item(value, i + 1)->text);
        }
    }
}
