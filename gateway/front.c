#include "gateway/front.h"

#include "gateway/api/api.h"
#include "gateway/base/log.h"
#include "gateway/digester.h"
#include "gateway/http.h"
#include "gateway/intake.h"
#include "gateway/listener.h"
#include "gateway/smtp_session.h"

/* How often a drain looks whether everything has ended. */
#define DRAIN_POLL_MS 20

/* One listener with what serves its connections: smtp or http. */
struct gate {
    struct front *front;
    const struct conf_listener *conf; /* of the snapshot the process started with */
    size_t index;                     /* in that snapshot */
    struct listener *listener;
    struct smtp_server *smtp;
    struct http_server *http;
    struct api *api;
    struct http_limits limits;
};

struct front {
    struct loop *loop;
    struct front_conf conf;
    struct queue *queue;
    struct policy_cache *cache;
    struct intake *intake;
    struct digester *digester; /* NULL on the admin front */
    struct gate *gates;
    size_t gate_count;
    bool up;
    struct loop_timer drain_timer;
    int64_t drain_until_ms;
    void (*on_drained)(void *ctx);
    void *on_drained_ctx;
};

/* Queue. */

static void on_queue_state(void *ctx, bool up, const char *why)
{
    struct front *front = ctx;
    if (up != front->up) {
        front->up = up;
        events_redis(front->conf.events, up, why);
    } else if (!up) {
        events_redis_refused(front->conf.events, why);
    }
}

static void on_ready_hint(void *ctx)
{
    struct front *front = ctx;
    if (front->conf.on_enqueued != NULL) {
        front->conf.on_enqueued(front->conf.ctx);
    }
}

static void on_sweep(void *ctx, const char *what, int64_t count)
{
    struct front *front = ctx;
    events_sweep(front->conf.events, what, count);
}

static void on_warning(void *ctx, const char *text)
{
    const struct front *front = ctx;
    events_redis_warning(front->conf.events, text);
}

static const struct queue_ops queue_callbacks = {.on_state = on_queue_state,
                                                 .on_ready_hint = on_ready_hint,
                                                 .on_sweep = on_sweep,
                                                 .on_warning = on_warning};

/* Gates. */

static enum smtp_tls_mode smtp_tls_of(const struct conf_listener *listener)
{
    switch (listener->tls) {
    case CONF_TLS_OFF:
        return SMTP_TLS_OFF;
    case CONF_TLS_STARTTLS:
        return SMTP_TLS_STARTTLS;
    case CONF_TLS_IMPLICIT:
        return SMTP_TLS_IMPLICIT;
    }
    UNREACHABLE();
}

static enum smtp_auth_mode smtp_auth_of(const struct conf_listener *listener)
{
    switch (listener->auth) {
    case CONF_AUTH_OFF:
        return SMTP_AUTH_OFF;
    case CONF_AUTH_OPTIONAL:
        return SMTP_AUTH_OPTIONAL;
    case CONF_AUTH_REQUIRED:
        return SMTP_AUTH_REQUIRED;
    }
    UNREACHABLE();
}

static struct smtp_server_conf smtp_conf(const struct front *front, const struct gate *gate)
{
    const struct conf_listener *listener = gate->conf;
    return (struct smtp_server_conf){
        .hostname = front->conf.conf->hostname,
        .tls = smtp_tls_of(listener),
        .tls_context = front->conf.smtp_tls,
        .auth = smtp_auth_of(listener),
        .auth_without_tls = listener->auth_without_tls,
        .networks = listener->networks,
        .network_count = listener->network_count,
        .repair_line_endings = listener->line_endings == CONF_LINES_REPAIR,
        .max_recipients = listener->max_recipients,
        .max_message_bytes = listener->max_message_bytes,
        .max_connections = listener->max_connections,
        .idle_timeout_ms = listener->idle_timeout_ms,
        .policy = front->conf.policy,
        .connections = &front->conf.connections[gate->index],
    };
}

static bool wants_key(const struct conf *conf)
{
    for (size_t i = 0; i < conf->client_count; i++) {
        if ((conf->clients[i].scopes & POLICY_SCOPE_ADMIN) != 0) {
            return true;
        }
    }
    return false;
}

static void open_http(struct front *front, struct gate *gate)
{
    const struct conf_listener *listener = gate->conf;
    bool admin = listener->protocol == CONF_PROTOCOL_ADMIN;
    gate->api = api_new(&(struct api_conf){
        .loop = front->loop,
        .hostname = front->conf.conf->hostname,
        .max_message_bytes = listener->max_message_bytes,
        .max_recipients = listener->max_recipients,
        .policy = front->conf.policy,
        .cache = front->cache,
        .intake = admin ? NULL : front->intake,
        .queue = front->queue,
        .events = front->conf.events,
        .admission = front->conf.admission,
        .durability = front->conf.queue->durability,
        .allow_networks = listener->auth != CONF_AUTH_REQUIRED,
        .is_admin = admin,
        .admin_needs_key = wants_key(front->conf.conf),
    });
    api_set_settings(gate->api, front->conf.conf);
    gate->limits = (struct http_limits){.idle_timeout_ms = listener->idle_timeout_ms};
    gate->http = http_server_new(front->loop, api_handler(), gate->api, &gate->limits);
}

static int on_http_connection(void *ctx, uv_stream_t *socket)
{
    struct gate *gate = ctx;
    struct tls_context *tls = gate->conf->tls == CONF_TLS_IMPLICIT ? gate->front->conf.http_tls
                                                                   : NULL;
    return http_server_accept(gate->http, socket, tls);
}

static bool belongs_here(const struct front *front, const struct conf_listener *listener)
{
    return (listener->protocol == CONF_PROTOCOL_ADMIN) == front->conf.admin;
}

static int open_gate(struct front *front, const struct conf_listener *conf, struct err *err)
{
    struct gate *gate = &front->gates[front->gate_count];
    gate->front = front;
    gate->conf = conf;
    gate->index = (size_t)(conf - front->conf.conf->listeners);
    if (conf->protocol == CONF_PROTOCOL_SMTP) {
        struct smtp_server_conf settings = smtp_conf(front, gate);
        int status = smtp_server_new(front->loop, &settings, front->cache, front->intake,
                                     front->conf.events, &gate->smtp, err);
        if (status != ERR_OK) {
            return status;
        }
        front->gate_count++;
        return listener_open(front->loop, conf->bind, smtp_server_accept, gate->smtp,
                             &gate->listener, err);
    }
    open_http(front, gate);
    front->gate_count++;
    return listener_open(front->loop, conf->bind, on_http_connection, gate, &gate->listener, err);
}

static void take_snapshots(struct front *front, const struct front_conf *conf)
{
    front->conf = *conf;
    front->conf.policy = policy_ref(conf->policy);
    front->conf.smtp_tls = conf->smtp_tls != NULL ? tls_context_ref(conf->smtp_tls) : NULL;
    front->conf.http_tls = conf->http_tls != NULL ? tls_context_ref(conf->http_tls) : NULL;
}

static void drop_snapshots(struct front_conf *conf)
{
    policy_unref(&conf->policy);
    tls_context_unref(&conf->smtp_tls);
    tls_context_unref(&conf->http_tls);
}

int front_new(struct loop *loop, const struct front_conf *conf, struct front **out, struct err *err)
{
    struct front *front = mem_zero(sizeof *front);
    front->loop = loop;
    take_snapshots(front, conf);
    front->queue = queue_open(loop, conf->queue, &queue_callbacks, front);
    front->cache = policy_cache_new(loop);
    front->intake = intake_new(loop, front->queue, &conf->conf->intake, conf->events);
    intake_set_admission(front->intake, conf->admission);
    if (!conf->admin) {
        front->digester = digester_new(loop, front->queue, &conf->conf->intake, conf->events);
    } else {
        admission_watch(conf->admission, loop, front->queue);
    }
    front->gates = mem_zero((conf->conf->listener_count + 1) * sizeof *front->gates);
    *out = front;
    for (size_t i = 0; i < conf->conf->listener_count; i++) {
        if (!belongs_here(front, &conf->conf->listeners[i])) {
            continue;
        }
        int status = open_gate(front, &conf->conf->listeners[i], err);
        if (status != ERR_OK) {
            return status;
        }
    }
    return ERR_OK;
}

void front_reconfigure(struct front *front, const struct front_conf *conf)
{
    struct front_conf old = front->conf;
    take_snapshots(front, conf);
    intake_reconfigure(front->intake, &conf->conf->intake);
    if (front->digester != NULL) {
        digester_reconfigure(front->digester, &conf->conf->intake);
    }
    for (size_t i = 0; i < front->gate_count; i++) {
        struct gate *gate = &front->gates[i];
        if (gate->smtp != NULL) {
            struct smtp_server_conf settings = smtp_conf(front, gate);
            struct err err;
            if (smtp_server_reconfigure(gate->smtp, &settings, &err) != ERR_OK) {
                log_event(LOG_ERROR, "reload", LOG_TEXT("listener", gate->conf->bind),
                          LOG_TEXT("why", err.text));
            }
        } else {
            api_reconfigure(gate->api, front->conf.policy, gate->conf->max_message_bytes,
                            gate->conf->max_recipients, wants_key(conf->conf));
            api_set_settings(gate->api, conf->conf);
        }
    }
    drop_snapshots(&old);
}

void front_set_draining(struct front *front)
{
    for (size_t i = 0; i < front->gate_count; i++) {
        if (front->gates[i].api != NULL) {
            api_set_draining(front->gates[i].api, true);
        }
    }
}

void front_set_disk_full(struct front *front, bool full)
{
    queue_refuse(front->queue, full);
}

/* Draining. */

static void on_queue_closed(void *ctx)
{
    struct front *front = ctx;
    void (*on_drained)(void *) = front->on_drained;
    void *on_drained_ctx = front->on_drained_ctx;
    drop_snapshots(&front->conf);
    mem_free(front->gates);
    mem_free(front);
    on_drained(on_drained_ctx);
}

static size_t work_left(const struct front *front)
{
    size_t left = intake_pending(front->intake);
    for (size_t i = 0; i < front->gate_count; i++) {
        const struct gate *gate = &front->gates[i];
        left += gate->smtp != NULL ? smtp_server_sessions(gate->smtp)
                                   : http_server_sessions(gate->http) + api_pending(gate->api);
    }
    return left;
}

/* Ends what is left at once; answers of the queue that still come find nobody to tell. */
static void end_sessions(struct front *front)
{
    for (size_t i = 0; i < front->gate_count; i++) {
        struct gate *gate = &front->gates[i];
        if (gate->smtp != NULL) {
            smtp_server_abort(gate->smtp);
        } else {
            http_server_free(&gate->http);
        }
    }
}

static bool calls_left(const struct front *front)
{
    size_t left = intake_pending(front->intake);
    left += front->digester != NULL && digester_busy(front->digester) ? 1 : 0;
    for (size_t i = 0; i < front->gate_count; i++) {
        const struct gate *gate = &front->gates[i];
        left += gate->smtp != NULL ? smtp_server_sessions(gate->smtp) : api_pending(gate->api);
    }
    return left > 0;
}

static void wait_for_calls(void *ctx)
{
    struct front *front = ctx;
    if (calls_left(front)) {
        loop_timer_start(front->loop, &front->drain_timer, DRAIN_POLL_MS, wait_for_calls, front);
        return;
    }
    for (size_t i = 0; i < front->gate_count; i++) {
        struct gate *gate = &front->gates[i];
        if (gate->smtp != NULL) {
            smtp_server_free(&gate->smtp);
        } else {
            api_free(&gate->api);
        }
    }
    digester_free(&front->digester);
    if (front->conf.admin) {
        admission_unwatch(front->conf.admission);
    }
    intake_free(&front->intake);
    policy_cache_free(&front->cache);
    queue_close(front->queue, on_queue_closed, front);
}

static void wait_for_sessions(void *ctx)
{
    struct front *front = ctx;
    if (work_left(front) > 0 && loop_now_ms(front->loop) < front->drain_until_ms) {
        loop_timer_start(front->loop, &front->drain_timer, DRAIN_POLL_MS, wait_for_sessions, front);
        return;
    }
    end_sessions(front);
    wait_for_calls(front);
}

/* The drain timer looks at all servers together. */
static void on_smtp_drained(void *ctx)
{
    (void)ctx;
}

void front_drain(struct front *front, int64_t timeout_ms, void (*on_drained)(void *ctx), void *ctx)
{
    front->on_drained = on_drained;
    front->on_drained_ctx = ctx;
    front->drain_until_ms = loop_now_ms(front->loop) + timeout_ms;
    front_set_draining(front);
    if (front->digester != NULL) {
        digester_stop(front->digester);
    }
    for (size_t i = 0; i < front->gate_count; i++) {
        struct gate *gate = &front->gates[i];
        listener_close(&gate->listener);
        if (gate->smtp != NULL) {
            smtp_server_drain(gate->smtp, on_smtp_drained, front);
        } else {
            http_server_drain(gate->http);
        }
    }
    wait_for_sessions(front);
}
