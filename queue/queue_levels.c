/* How full the queue is: two commands a shard and one INFO a server, whatever waits. */
#include "queue/queue_internal.h"

struct levels {
    struct queue *queue;
    queue_levels_cb cb;
    void *ctx;
    size_t waiting;
    int status;
    uint64_t fullest; /* bytes of the shard that holds most */
    struct queue_levels found;
};

static void one_answered(struct levels *levels, int status)
{
    levels->status = levels->status != 0 ? levels->status : status;
    levels->waiting--;
    if (levels->waiting > 0) {
        return;
    }
    levels->found.bytes = levels->fullest * levels->queue->conf->shards;
    levels->cb(levels->ctx, levels->status, levels->status == 0 ? &levels->found : NULL);
    mem_free(levels);
}

static uint64_t natural(int64_t number)
{
    return number > 0 ? (uint64_t)number : 0;
}

static void on_shard(void *ctx, int status, const struct redis_value *value)
{
    struct levels *levels = ctx;
    if (status == 0 && value->type == REDIS_ARRAY) {
        uint64_t bytes = natural(redis_integer(redis_item(value, 0)));
        levels->fullest = bytes > levels->fullest ? bytes : levels->fullest;
        levels->found.messages += natural(redis_integer(redis_item(value, 1)));
    }
    one_answered(levels, status == ERR_PROTO ? ERR_UNAVAILABLE : status);
}

/* The number of a line "name:123" of INFO; 0 without. */
static uint64_t info_number(struct span info, const char *name)
{
    struct span wanted = span_of(name);
    while (info.len > 0) {
        struct span line = span_trim(span_cut(&info, '\n'));
        struct span word = span_cut(&line, ':');
        uint64_t number = 0;
        if (span_eq(word, wanted) && span_to_u64(line, INT64_MAX / 1000, &number) == 0) {
            return number;
        }
    }
    return 0;
}

static void on_memory(void *ctx, int status, const struct redis_value *value)
{
    struct levels *levels = ctx;
    if (status == 0) {
        uint64_t most = info_number(value->text, "maxmemory");
        uint64_t used = info_number(value->text, "used_memory");
        uint64_t apart = info_number(value->text, "mem_not_counted_for_evict");
        used = used > apart ? used - apart : 0;
        uint64_t permille = most > 0 ? used * 1000 / most : 0;
        uint32_t before = levels->found.memory_permille;
        levels->found.memory_permille = permille > before ? (uint32_t)permille : before;
    }
    /* A server that does not say (INFO is not allowed) has no level. */
    one_answered(levels, status == ERR_PROTO ? 0 : status);
}

static int ask_memory(struct levels *levels, uint32_t shard)
{
    struct redis_args args;
    redis_args_init(&args);
    redis_args_text(&args, "INFO");
    redis_args_text(&args, "memory");
    return nodes_call(levels->queue->nodes, shard, &args, on_memory, levels);
}

static int ask_shard(struct levels *levels, uint32_t shard)
{
    struct redis_args head;
    queue_call_begin(shard, &head);
    return nodes_eval(levels->queue->nodes, shard, SCRIPT_LEVELS, 1, &head, NULL, on_shard, levels);
}

/* Whether the shard is the first of its server's. */
static bool new_place(const struct queue *queue, uint32_t shard)
{
    uint64_t place = nodes_place(queue->nodes, shard);
    for (uint32_t before = 0; before < shard; before++) {
        if (nodes_place(queue->nodes, before) == place) {
            return false;
        }
    }
    return true;
}

int queue_levels(struct queue *queue, queue_levels_cb cb, void *ctx)
{
    if (queue->closing) {
        return ERR_CLOSED;
    }
    for (uint32_t shard = 0; shard < queue->conf->shards; shard++) {
        if (!nodes_is_up(queue->nodes, shard)) {
            return ERR_UNAVAILABLE; /* half of it would look like half full */
        }
    }
    struct levels *levels = mem_zero(sizeof(*levels));
    levels->queue = queue;
    levels->cb = cb;
    levels->ctx = ctx;
    levels->waiting = 1; /* this call, so that nothing ends inside it */
    int status = 0;
    for (uint32_t shard = 0; shard < queue->conf->shards && status == 0; shard++) {
        status = ask_shard(levels, shard);
        levels->waiting += status == 0 ? 1 : 0;
        if (status == 0 && new_place(queue, shard)) {
            status = ask_memory(levels, shard);
            levels->waiting += status == 0 ? 1 : 0;
        }
    }
    levels->waiting--;
    if (levels->waiting == 0) {
        mem_free(levels);
        return status == ERR_CLOSED ? ERR_CLOSED : ERR_UNAVAILABLE;
    }
    levels->status = status;
    return 0;
}
