#include "gateway/api/admin.h"

#include "gateway/api/messages.h"
#include "gateway/api/problem.h"
#include "gateway/base/clock.h"

static json_t *admin_depth(const struct queue_depth *depth, int64_t now_ms)
{
    json_t *row = json_object();
    (void)json_object_set_new(row, "lane", api_text(depth->lane));
    (void)json_object_set_new(row, "backend", api_text(depth->backend));
    json_t *batches = json_object();
    for (int state = 0; state < BATCH_DONE; state++) {
        (void)json_object_set_new(batches, batch_state_name((enum batch_state)state),
                                  json_integer(depth->batches[state]));
    }
    (void)json_object_set_new(row, "batches", batches);
    json_t *since = json_object();
    for (int state = 0; state < BATCH_DONE; state++) {
        (void)json_object_set_new(since, batch_state_name((enum batch_state)state),
                                  api_time(depth->since_ms[state]));
    }
    (void)json_object_set_new(row, "since", since);
    int64_t oldest_ms = depth->since_ms[BATCH_READY];
    int64_t age_ms = now_ms > oldest_ms ? now_ms - oldest_ms : 0;
    (void)json_object_set_new(row, "oldest_ready_at", api_time(oldest_ms));
    (void)json_object_set_new(row, "oldest_ready_age_ms",
                              oldest_ms > 0 ? json_integer(age_ms) : json_null());
    return row;
}

json_t *admin_lanes_refused(const struct admission *admission)
{
    json_t *rows = json_array();
    size_t count = admission != NULL ? admission_limits(admission)->lane_count : 0;
    for (size_t i = 0; i < count; i++) {
        const char *lane = admission_limits(admission)->lanes[i].name;
        enum admission_reason reason = admission_of(admission, span_of(lane));
        if (reason != ADMISSION_OPEN) {
            json_t *row = json_object();
            (void)json_object_set_new(row, "lane", json_string(lane));
            (void)json_object_set_new(row, "reason", json_string(admission_reason_name(reason)));
            (void)json_array_append_new(rows, row);
        }
    }
    return rows;
}

static void admin_on_totals(void *ctx, int status, const struct queue_totals *totals)
{
    struct api_call *call = ctx;
    if (!api_call_resume(call)) {
        return;
    }
    if (status != 0) {
        api_unavailable(call, "The queue cannot be reached.");
        return;
    }
    int64_t now = clock_wall_ms();
    json_t *body = json_object();
    json_t *rows = json_array();
    for (size_t i = 0; i < totals->depth_count; i++) {
        (void)json_array_append_new(rows, admin_depth(&totals->depths[i], now));
    }
    (void)json_object_set_new(body, "queues", rows);
    (void)json_object_set_new(body, "bytes", json_integer(totals->bytes));
    (void)json_object_set_new(body, "lanes_refused",
                              admin_lanes_refused(call->api->conf.admission));
    (void)json_object_set_new(body, "messages_open", json_integer(totals->messages_open));
    (void)json_object_set_new(body, "dead_letters", json_integer(totals->dead_messages));
    (void)json_object_set_new(body, "dead_letter_bytes", json_integer(totals->dead_bytes));
    (void)json_object_set_new(body, "history_bytes", json_integer(totals->history_bytes));
    json_t *recipients = json_object();
    for (int state = 0; state < RECIPIENT_STATE_COUNT; state++) {
        (void)json_object_set_new(recipients, recipient_state_name((enum recipient_state)state),
                                  json_integer(totals->recipients[state]));
    }
    (void)json_object_set_new(body, "recipients", recipients);
    api_call_json(call, 200, NULL, 0, body);
}

void admin_queue(struct api_call *call)
{
    if (queue_totals(call->api->conf.queue, admin_on_totals, call) != 0) {
        api_unavailable(call, "The queue cannot be reached.");
        return;
    }
    api_call_wait(call);
}

void admin_messages(struct api_call *call)
{
    messages_list_all(call);
}
