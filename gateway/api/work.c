#include "gateway/api/work.h"

#include "gateway/api/message_json.h"
#include "gateway/api/problem.h"
#include "gateway/base/clock.h"
#include "gateway/conf.h"
#include "queue/work.h"

#include <stddef.h>

enum {
    LIMIT_DEFAULT = 2000,
    LANES_MAX = 64,
};

/* The body. Every member is a row; what it means is read into the order. Texts stay the JSON's
 * until queue_work() has copied them. */

struct reader {
    struct queue_order order;
    struct span ids[QUEUE_WORK_IDS_MAX];
    bool all;
    bool selects; /* the selector names something */
    json_t *errors;
};

struct member {
    const char *name;
    size_t text; /* offset of a span in struct reader, when there is no `read` */
    void (*read)(struct reader *reader, const json_t *value, const char *pointer);
    bool selects;
};

static struct span text_of(const json_t *value)
{
    return span_make(json_string_value(value), json_string_length(value));
}

static void read_flag(struct reader *reader, const json_t *value, const char *pointer, bool *out)
{
    if (json_is_boolean(value)) {
        *out = json_is_true(value);
    } else {
        problem_add(reader->errors, pointer, "must be true or false");
    }
}

static void read_all(struct reader *reader, const json_t *value, const char *pointer)
{
    read_flag(reader, value, pointer, &reader->all);
}

static void read_reset(struct reader *reader, const json_t *value, const char *pointer)
{
    read_flag(reader, value, pointer, &reader->order.reset);
}

static void read_dry_run(struct reader *reader, const json_t *value, const char *pointer)
{
    read_flag(reader, value, pointer, &reader->order.dry_run);
}

static void read_limit(struct reader *reader, const json_t *value, const char *pointer)
{
    json_int_t limit = json_integer_value(value);
    if (limit < 1 || limit > QUEUE_WORK_LIMIT_MAX) {
        problem_add(reader->errors, pointer, "must be 1 to %d", QUEUE_WORK_LIMIT_MAX);
    } else {
        reader->order.limit = (size_t)limit;
    }
}

static void read_ids(struct reader *reader, const json_t *value, const char *pointer)
{
    size_t count = json_array_size(value);
    if (!json_is_array(value) || count > QUEUE_WORK_IDS_MAX) {
        problem_add(reader->errors, pointer, "must be a list of at most %d ids",
                    QUEUE_WORK_IDS_MAX);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        struct span id = text_of(json_array_get(value, i));
        if (id.len == 0 || id.len > MESSAGE_ID_MAX + 8) {
            problem_add(reader->errors, pointer, "must hold message ids, or id/batch");
            return;
        }
        reader->ids[i] = id;
    }
    reader->order.ids = reader->ids;
    reader->order.id_count = count;
}

static void read_state(struct reader *reader, const json_t *value, const char *pointer)
{
    static const struct {
        const char *name;
        enum queue_select state;
    } rows[] = {
        {"ready", QUEUE_SELECT_READY},       {"delayed", QUEUE_SELECT_DELAYED},
        {"held", QUEUE_SELECT_HELD},         {"failed", QUEUE_SELECT_FAILED},
        {"expired", QUEUE_SELECT_EXPIRED},   {"unknown", QUEUE_SELECT_UNKNOWN},
        {"finished", QUEUE_SELECT_FINISHED},
    };
    uint32_t before = reader->order.selector.states;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        if (span_eq(text_of(value), span_of(rows[i].name))) {
            reader->order.selector.states |= rows[i].state;
        }
    }
    if (reader->order.selector.states == before) {
        problem_add(reader->errors, pointer,
                    "must be ready, delayed, held, failed, expired, unknown or finished");
    }
}

static void read_older_than(struct reader *reader, const json_t *value, const char *pointer)
{
    int64_t at_ms = 0;
    if (clock_parse_rfc3339(text_of(value), &at_ms) != 0) {
        int64_t ago_ms = 0;
        if (message_duration(text_of(value), &ago_ms) != 0) {
            problem_add(reader->errors, pointer, "must be a duration (2d) or a time (RFC 3339)");
            return;
        }
        at_ms = clock_wall_ms() - ago_ms;
    }
    /* 0 would be no limit at all: a script's zero date must not select everything. */
    reader->order.selector.accepted_before_ms = at_ms > 0 ? at_ms : 1;
}

static void read_selector(struct reader *reader, const json_t *value, const char *pointer);

#define ORDER(field) offsetof(struct reader, order.field)

static const struct member members[] = {
    {.name = "ids", .read = read_ids},         {.name = "selector", .read = read_selector},
    {.name = "all", .read = read_all},         {.name = "reason", .text = ORDER(reason)},
    {.name = "to", .text = ORDER(to)},         {.name = "reset", .read = read_reset},
    {.name = "dry_run", .read = read_dry_run}, {.name = "limit", .read = read_limit},
    {.name = "cursor", .text = ORDER(cursor)},
};

static const struct member selector_members[] = {
    {.name = "lane", .text = ORDER(selector.lane), .selects = true},
    {.name = "backend", .text = ORDER(selector.backend), .selects = true},
    {.name = "client", .text = ORDER(selector.client), .selects = true},
    {.name = "sender", .text = ORDER(selector.sender), .selects = true},
    {.name = "domain", .text = ORDER(selector.domain), .selects = true},
    {.name = "tag", .text = ORDER(selector.tag), .selects = true},
    {.name = "state", .read = read_state, .selects = true},
    {.name = "older_than", .read = read_older_than, .selects = true},
};

static void read_text(struct reader *reader, const json_t *value, const char *pointer,
                      size_t offset)
{
    struct span text = text_of(value);
    if (text.len == 0 || text.len > 300) {
        problem_add(reader->errors, pointer, "must be a text of 1 to 300 bytes");
        return;
    }
    memcpy((char *)reader + offset, &text, sizeof(text));
}

static void read_member(struct reader *reader, const struct member *rows, size_t count,
                        const char *name, const json_t *value, const char *pointer)
{
    for (size_t i = 0; i < count; i++) {
        if (strcmp(rows[i].name, name) != 0) {
            continue;
        }
        reader->selects = reader->selects || rows[i].selects;
        if (rows[i].read != NULL) {
            rows[i].read(reader, value, pointer);
        } else {
            read_text(reader, value, pointer, rows[i].text);
        }
        return;
    }
    problem_add(reader->errors, pointer, "is not a member of this");
}

static void read_members(struct reader *reader, const struct member *rows, size_t count,
                         const json_t *object, const char *prefix)
{
    const char *name = NULL;
    json_t *value = NULL;
    json_object_foreach((json_t *)(uintptr_t)object, name, value)
    {
        char pointer[80];
        (void)snprintf(pointer, sizeof(pointer), "%s/%.40s", prefix, name);
        read_member(reader, rows, count, name, value, pointer);
    }
}

static void read_selector(struct reader *reader, const json_t *value, const char *pointer)
{
    if (!json_is_object(value)) {
        problem_add(reader->errors, pointer, "must be an object");
        return;
    }
    read_members(reader, selector_members, sizeof(selector_members) / sizeof(selector_members[0]),
                 value, pointer);
}

/* What the configuration has to say. */

static bool read_target(const struct api_call *call, struct reader *reader)
{
    const struct conf *settings = call->api->settings;
    for (size_t i = 0; settings != NULL && i < settings->route.backend_count; i++) {
        const struct route_backend *backend = &settings->route.backends[i];
        if (span_eq(span_of(backend->name), reader->order.to)) {
            reader->order.to_recipients_max = backend->recipients_per_message;
            reader->order.to_bytes_max = backend->message_bytes;
            return true;
        }
    }
    problem_add(reader->errors, "/to", "must name a backend of the configuration");
    return false;
}

static void check_order(const struct api_call *call, struct reader *reader)
{
    if (reader->order.verb == QUEUE_MOVE) {
        (void)read_target(call, reader);
    } else if (reader->order.to.len > 0) {
        problem_add(reader->errors, "/to", "is only for move");
    }
    if (reader->order.reset && reader->order.verb != QUEUE_RETRY) {
        problem_add(reader->errors, "/reset", "is only for retry");
    }
    if (reader->order.id_count == 0 && !reader->selects && !reader->all) {
        problem_add(reader->errors, "/selector",
                    "must select something, or \"all\" must be true, or there must be ids");
    }
}

static size_t lane_lifetimes(const struct conf *settings, struct queue_lifetime *out)
{
    size_t count = settings != NULL ? settings->lane_count : 0;
    count = count < LANES_MAX ? count : LANES_MAX;
    for (size_t i = 0; i < count; i++) {
        out[i] = (struct queue_lifetime){.lane = settings->lanes[i].name,
                                         .expires_ms = settings->lanes[i].expires_ms};
    }
    return count;
}

/* The answer. */

struct work_call {
    struct api_call *call;
    enum queue_verb verb;
    bool dry_run;
};

static json_t *recipients_object(const struct queue_worked *worked)
{
    json_t *object = json_object();
    for (int state = 0; state < RECIPIENT_STATE_COUNT; state++) {
        if (worked->recipients[state] > 0) {
            (void)json_object_set_new(object, recipient_state_name((enum recipient_state)state),
                                      json_integer(worked->recipients[state]));
        }
    }
    return object;
}

static json_t *worked_object(const struct work_call *work, const struct queue_worked *worked)
{
    json_t *body = json_object();
    json_t *matched = json_object();
    json_t *skips = json_array();
    (void)json_object_set_new(matched, "messages", json_integer(worked->messages));
    (void)json_object_set_new(matched, "batches", json_integer(worked->batches));
    (void)json_object_set_new(matched, "recipients", recipients_object(worked));
    for (size_t i = 0; i < worked->skip_count; i++) {
        const struct queue_skip *skip = &worked->skips[i];
        json_t *item = json_object();
        (void)json_object_set_new(item, "id", api_text(skip->id));
        (void)json_object_set_new(item, "batch",
                                  skip->batch >= 0 ? json_integer(skip->batch) : json_null());
        (void)json_object_set_new(item, "reason", json_string(skip->reason));
        (void)json_array_append_new(skips, item);
    }
    struct span next = worked->next_cursor;
    (void)json_object_set_new(body, "verb", json_string(queue_verb_name(work->verb)));
    (void)json_object_set_new(body, "dry_run", json_boolean(work->dry_run));
    (void)json_object_set_new(body, "matched", matched);
    (void)json_object_set_new(body, "changed", json_integer(worked->changed));
    (void)json_object_set_new(body, "busy", json_integer(worked->busy));
    (void)json_object_set_new(body, "skipped_count", json_integer(worked->skipped));
    (void)json_object_set_new(body, "skipped", skips);
    (void)json_object_set_new(body, "next_cursor", next.len > 0 ? api_text(next) : json_null());
    return body;
}

static void log_work(const struct work_call *work, const struct api_call *call, const char *who,
                     const struct queue_worked *worked)
{
    if (worked->changed > 0) {
        events_work(call->api->conf.events, queue_verb_name(work->verb), who, worked->messages,
                    worked->changed, worked->busy);
    }
}

static void on_worked(void *ctx, int status, const struct queue_worked *worked)
{
    struct work_call work = *(struct work_call *)ctx;
    mem_free(ctx);
    if (status == 0) {
        const struct api_call *call = work.call;
        bool keyless = call->operator_keyless || call->client == NULL;
        log_work(&work, call, keyless ? "loopback" : call->client->conf->name, worked);
    }
    if (!api_call_resume(work.call)) {
        return;
    }
    if (status != 0) {
        api_unavailable(work.call, "The queue cannot be reached. Some of it may have been done.");
        return;
    }
    api_call_json(work.call, 200, NULL, 0, worked_object(&work, worked));
}

static void start_work(struct api_call *call, const struct queue_order *order, queue_work_cb cb)
{
    struct work_call *work = mem_zero(sizeof(*work));
    *work = (struct work_call){.call = call, .verb = order->verb, .dry_run = order->dry_run};
    int status = queue_work(call->api->conf.queue, order, cb, work);
    if (status == 0) {
        api_call_wait(call);
        return;
    }
    mem_free(work);
    if (status == ERR_INVAL) {
        api_refuse(call, 422, "The cursor is not one this gateway gave for this.");
    } else {
        api_unavailable(call, "The queue cannot be reached.");
    }
}

static json_t *parse_body(struct api_call *call)
{
    struct span body = buf_span(&call->request->body);
    json_error_t error;
    json_t *root = json_loadb(body.data != NULL ? body.data : "", body.len, JSON_REJECT_DUPLICATES,
                              &error);
    if (json_is_object(root)) {
        return root;
    }
    json_decref(root);
    api_problem(call, &(struct problem){.status = 400,
                                        .name = "malformed-json",
                                        .detail = "The body must be a JSON object."});
    return NULL;
}

static bool find_verb(const char *name, enum queue_verb *out)
{
    for (int verb = 0; verb < QUEUE_VERB_COUNT; verb++) {
        if (strcmp(queue_verb_name((enum queue_verb)verb), name) == 0) {
            *out = (enum queue_verb)verb;
            return true;
        }
    }
    return false;
}

void work_post(struct api_call *call)
{
    struct reader reader = {.order.limit = LIMIT_DEFAULT};
    struct queue_lifetime lifetimes[LANES_MAX];
    if (!find_verb(call->param, &reader.order.verb)) {
        api_refuse(call, 404,
                   "The verbs are hold, release, retry, cancel, move, purge and replay.");
        return;
    }
    json_t *root = parse_body(call);
    if (root == NULL) {
        return;
    }
    reader.errors = json_array();
    read_members(&reader, members, sizeof(members) / sizeof(members[0]), root, "");
    check_order(call, &reader);
    reader.order.lifetimes = lifetimes;
    reader.order.lifetime_count = lane_lifetimes(call->api->settings, lifetimes);
    if (json_array_size(reader.errors) > 0) {
        api_problem(call, &(struct problem){.status = 422,
                                            .name = "invalid-order",
                                            .detail = "What is to be done cannot be read.",
                                            .errors = json_incref(reader.errors)});
    } else {
        start_work(call, &reader.order, on_worked);
    }
    json_decref(reader.errors);
    json_decref(root);
}

/* DELETE. */

static void on_cancelled(void *ctx, int status, const struct queue_worked *worked)
{
    struct work_call work = *(struct work_call *)ctx;
    struct api_call *call = work.call;
    mem_free(ctx);
    if (status == 0) {
        log_work(&work, call, call->client->conf->name, worked);
    }
    if (!api_call_resume(call)) {
        return;
    }
    if (status != 0) {
        api_unavailable(call, "The queue cannot be reached. Some of it may have been cancelled.");
    } else if (worked->found == 0) {
        api_refuse(call, 404, "There is no such message, or its history has been removed.");
    } else if (worked->changed == 0) {
        api_problem(call, &(struct problem){
                              .status = 409,
                              .name = "not-cancelled",
                              .detail = worked->busy > 0
                                            ? "It is being sent at this moment."
                                            : "Nothing of it waits any more: see its status."});
    } else {
        json_t *body = worked_object(&work, worked);
        (void)json_object_set_new(body, "id", json_string(call->param));
        api_call_json(call, 200, NULL, 0, body);
    }
}

void work_delete(struct api_call *call)
{
    struct span id = span_of(call->param);
    struct queue_order order = {
        .verb = QUEUE_CANCEL,
        .ids = &id,
        .id_count = 1,
        .selector.client = span_of(call->client->conf->name),
        .reason = SPAN_LIT("cancelled by its client"),
        .limit = QUEUE_WORK_LIMIT_MAX,
    };
    if (id.len > MESSAGE_ID_MAX) {
        api_refuse(call, 404, "There is no such message, or its history has been removed.");
        return;
    }
    start_work(call, &order, on_cancelled);
}
