/* GET /v1/messages and /v1/admin/messages: the query becomes a queue_filter, a page becomes JSON.
 */
#include "gateway/api/messages.h"

#include "gateway/api/message_json.h"
#include "gateway/api/problem.h"
#include "gateway/base/clock.h"

#define LIST_LIMIT_DEFAULT 50
#define LIST_LIMIT_MAX 500
/* A page of a list names at most this many recipients; see message_object(). */
#define LIST_RECIPIENTS_MAX 20000

static bool list_limit(struct queue_filter *filter, struct span value)
{
    uint64_t limit = 0;
    bool good = span_to_u64(value, LIST_LIMIT_MAX, &limit) == 0 && limit > 0;
    filter->limit = good ? (size_t)limit : filter->limit;
    return good;
}

/* A state of messages, recipients or batches; their words are all different. */
static bool list_state(struct queue_filter *filter, struct span value)
{
    if (span_eq(value, SPAN_LIT("any"))) {
        return true;
    }
    if (span_eq(value, SPAN_LIT("unfinished"))) {
        filter->unfinished_only = true;
        return true;
    }
    for (int state = 0; state < RECIPIENT_STATE_COUNT; state++) {
        if (span_eq(value, span_of(recipient_state_name((enum recipient_state)state)))) {
            filter->recipient_states |= 1u << state;
            filter->unfinished_only = filter->unfinished_only || state == RECIPIENT_QUEUED;
            return true;
        }
    }
    for (int state = 0; state < BATCH_STATE_COUNT; state++) {
        if (span_eq(value, span_of(batch_state_name((enum batch_state)state)))) {
            filter->batch_states |= 1u << state;
            filter->unfinished_only = filter->unfinished_only || state != BATCH_DONE;
            return true;
        }
    }
    return false;
}

/* A time (RFC 3339), or how long ago ("2d"). */
static bool list_time(struct span value, int64_t *out_ms)
{
    int64_t ago_ms = 0;
    if (clock_parse_rfc3339(value, out_ms) == 0) {
        return *out_ms > 0;
    }
    if (message_duration(value, &ago_ms) != 0) {
        return false;
    }
    *out_ms = clock_wall_ms() - ago_ms;
    return true;
}

static bool list_since(struct queue_filter *filter, struct span value)
{
    return list_time(value, &filter->since_ms);
}

static bool list_before(struct queue_filter *filter, struct span value)
{
    return list_time(value, &filter->before_ms);
}

/* Parameters: those that are texts for the queue, and those that are read. */
static const struct {
    const char *name;
    size_t text; /* offset of a span in struct queue_filter, when there is no `read` */
    bool (*read)(struct queue_filter *filter, struct span value);
    bool all_only; /* for those who see all clients */
} list_parameters[] = {
    {.name = "q", .text = offsetof(struct queue_filter, text)},
    {.name = "address", .text = offsetof(struct queue_filter, address)},
    {.name = "message_id", .text = offsetof(struct queue_filter, message_id)},
    {.name = "sender", .text = offsetof(struct queue_filter, sender)},
    {.name = "domain", .text = offsetof(struct queue_filter, domain)},
    {.name = "tag", .text = offsetof(struct queue_filter, tag)},
    {.name = "lane", .text = offsetof(struct queue_filter, lane)},
    {.name = "backend", .text = offsetof(struct queue_filter, backend)},
    {.name = "client", .text = offsetof(struct queue_filter, client), .all_only = true},
    {.name = "cursor", .text = offsetof(struct queue_filter, cursor)},
    {.name = "state", .read = list_state},
    {.name = "since", .read = list_since},
    {.name = "before", .read = list_before},
    {.name = "limit", .read = list_limit},
};

static bool list_parameter(struct queue_filter *filter, bool all, struct span name,
                           struct span value)
{
    for (size_t i = 0; i < sizeof(list_parameters) / sizeof(list_parameters[0]); i++) {
        if (!span_eq(name, span_of(list_parameters[i].name)) ||
            (list_parameters[i].all_only && !all)) {
            continue;
        }
        if (list_parameters[i].read != NULL) {
            return list_parameters[i].read(filter, value);
        }
        memcpy((char *)filter + list_parameters[i].text, &value, sizeof(value));
        return true;
    }
    return false;
}

static void messages_on_list(void *ctx, int status, const struct message *messages, size_t count,
                             struct span next_cursor)
{
    struct api_call *call = ctx;
    if (!api_call_resume(call)) {
        return;
    }
    if (status == ERR_INVAL || status == ERR_NOTFOUND) {
        api_refuse(call, 422, "The cursor is not one this gateway gave for this search.");
        return;
    }
    if (status != 0) {
        api_unavailable(call, "The queue cannot be reached.");
        return;
    }
    json_t *list = json_array();
    size_t budget = LIST_RECIPIENTS_MAX;
    for (size_t i = 0; i < count; i++) {
        (void)json_array_append_new(list, message_object(&messages[i], &budget));
    }
    json_t *body = json_object();
    (void)json_object_set_new(body, "messages", list);
    (void)json_object_set_new(body, "next_cursor",
                              next_cursor.len > 0 ? api_text(next_cursor) : json_null());
    api_call_json(call, 200, NULL, 0, body);
}

static void refuse_parameter(struct api_call *call, struct span name)
{
    char detail[400];
    (void)snprintf(
        detail, sizeof(detail),
        "The query cannot have this \"%.*s\". It may hold q, address, message_id, sender, "
        "domain, tag, lane, backend, cursor, limit (1 to 500), since and before (a time, or "
        "how long ago: 2d), state (unfinished, any, or a state of recipients or batches).",
        name.len < 40 ? (int)name.len : 40, name.len > 0 ? name.data : "");
    api_refuse(call, 422, detail);
}

static void list(struct api_call *call, bool all, bool dead)
{
    struct queue_filter filter = {.limit = LIST_LIMIT_DEFAULT, .dead_only = dead};
    struct span rest = call->request->query;
    struct span name = {0};
    struct span value = {0};
    bool bad = false;
    while (http_query_next(call->request, &rest, &name, &value, &bad)) {
        if (!list_parameter(&filter, all, name, value)) {
            refuse_parameter(call, name);
            return;
        }
    }
    if (bad) {
        api_refuse(call, 400, "The query cannot be decoded.");
        return;
    }
    if (!all) {
        ASSERT(call->client != NULL); /* without one only the operator gets here */
        filter.client = span_of(call->client->conf->name);
    }
    int rc = queue_list(call->api->conf.queue, &filter, messages_on_list, call);
    if (rc == ERR_INVAL) {
        api_refuse(
            call, 422,
            "The cursor is not one this gateway gave for this search, or a text is too long.");
    } else if (rc != 0) {
        api_unavailable(call, "The queue cannot be reached.");
    } else {
        api_call_wait(call);
    }
}

void messages_list(struct api_call *call)
{
    list(call, (call->scopes & POLICY_SCOPE_ADMIN) != 0, false);
}

void messages_list_all(struct api_call *call)
{
    list(call, true, false);
}

void messages_list_dead(struct api_call *call)
{
    list(call, true, true);
}
