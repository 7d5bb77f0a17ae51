#include "gateway/api/health.h"

#include "gateway/api/admin.h"
#include "gateway/base/clock.h"

#define METRICS_TEXT_MAX (16u * 1024u * 1024u)

void health_live(struct api_call *call)
{
    json_t *body = json_object();
    (void)json_object_set_new(body, "status", json_string("alive"));
    (void)json_object_set_new(body, "version", json_string(HEAVE_VERSION));
    api_call_json(call, 200, NULL, 0, body);
}

void health_ready(struct api_call *call)
{
    const struct api *api = call->api;
    /* Of all loops: a message is accepted by another one than this. */
    bool redis_up = queue_is_up(api->conf.queue) && events_redis_is_up(api->conf.events);
    bool ready = redis_up && !api->draining;
    json_t *body = json_object();
    (void)json_object_set_new(body, "status", json_string(ready ? "ready" : "not ready"));
    (void)json_object_set_new(body, "redis", json_string(redis_up ? "up" : "down"));
    (void)json_object_set_new(body, "draining", json_boolean(api->draining));
    (void)json_object_set_new(body, "durability",
                              json_string(queue_durability_name(api->conf.durability)));
    (void)json_object_set_new(body, "lanes_refused", admin_lanes_refused(api->conf.admission));
    if (!ready) {
        (void)json_object_set_new(
            body, "reason",
            json_string(api->draining ? "The gateway is draining: it finishes and takes no more."
                                      : "Redis cannot be used; the log says why."));
    }
    api_call_json(call, ready ? 200 : 503, NULL, 0, body);
}

static void metrics_answer(struct api_call *call)
{
    struct buf text;
    buf_init(&text, METRICS_TEXT_MAX);
    int rc = metrics_expose(events_metrics(call->api->conf.events), &text);
    /* Cut metrics would look like metrics that went away; nothing is better. */
    struct span body = rc == 0 ? buf_span(&text) : SPAN_LIT("");
    api_call_bytes(call, rc == 0 ? 200 : 503, "text/plain; version=0.0.4; charset=utf-8", body);
    buf_release(&text);
}

static void metrics_depths(struct events *events, const struct queue_totals *totals)
{
    int64_t now = clock_wall_ms();
    for (size_t i = 0; i < totals->depth_count; i++) {
        const struct queue_depth *depth = &totals->depths[i];
        for (int state = 0; state < BATCH_DONE; state++) {
            int64_t since_ms = depth->since_ms[state];
            events_depth(events, depth->lane, depth->backend,
                         batch_state_name((enum batch_state)state), depth->batches[state],
                         since_ms > 0 && now > since_ms ? now - since_ms : 0);
        }
    }
    events_queue_bytes(events, totals->bytes, totals->messages_open);
    events_queue_ended(events, totals->dead_messages, totals->dead_bytes, totals->history_bytes);
}

static void metrics_on_totals(void *ctx, int status, const struct queue_totals *totals)
{
    struct api_call *call = ctx;
    if (status == 0) {
        metrics_depths(call->api->conf.events, totals);
    }
    if (api_call_resume(call)) {
        metrics_answer(call);
    }
}

void health_metrics(struct api_call *call)
{
    if (queue_totals(call->api->conf.queue, metrics_on_totals, call) != 0) {
        metrics_answer(call); /* Redis away: the gauges stay as they were, heave_redis_up says so */
        return;
    }
    api_call_wait(call);
}
