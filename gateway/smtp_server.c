/* The server around the sessions: settings, limits, drain. */
#include "gateway/smtp_session_private.h"

#include "gateway/base/codec.h"

#include <stdio.h>

#define DEFAULT_RECIPIENTS ((size_t)10000)
#define DEFAULT_MESSAGE_BYTES ((size_t)50 << 20)
#define DEFAULT_CONNECTIONS ((size_t)10000)
#define DEFAULT_HELD_BYTES ((size_t)256 << 20)
#define DEFAULT_IDLE_MS ((int64_t)300000)
#define DEFAULT_DATA_MS ((int64_t)3600000)
#define DEFAULT_ERRORS 20
#define DEFAULT_IDLE_COMMANDS 1000

/* ---- Settings ---- */

static void fill_machine_conf(struct smtp_settings *settings, const struct smtp_server_conf *conf)
{
    settings->machine = (struct smtp_conf){
        .hostname = settings->hostname,
        .offer_starttls = conf->tls == SMTP_TLS_STARTTLS,
        .offer_auth = conf->auth != SMTP_AUTH_OFF,
        .auth_without_tls = conf->auth_without_tls,
        .repair_line_endings = conf->repair_line_endings,
        .max_message_bytes = conf->max_message_bytes > 0 ? conf->max_message_bytes
                                                         : DEFAULT_MESSAGE_BYTES,
        .max_recipients = conf->max_recipients > 0 ? conf->max_recipients : DEFAULT_RECIPIENTS,
        .max_errors = conf->max_errors > 0 ? conf->max_errors : DEFAULT_ERRORS,
        .max_idle_commands = conf->max_idle_commands > 0 ? conf->max_idle_commands
                                                         : DEFAULT_IDLE_COMMANDS,
    };
}

static void fill_limits(struct smtp_settings *settings, const struct smtp_server_conf *conf)
{
    settings->max_connections = conf->max_connections > 0 ? conf->max_connections
                                                          : DEFAULT_CONNECTIONS;
    settings->max_per_address = conf->max_connections_per_address > 0
                                    ? conf->max_connections_per_address
                                    : settings->max_connections;
    size_t held = conf->max_held_bytes > 0 ? conf->max_held_bytes : DEFAULT_HELD_BYTES;
    size_t least = 2 * (settings->machine.max_message_bytes + 1); /* a buf may keep a NUL more */
    settings->max_held_bytes = held > least ? held : least;
    settings->idle_timeout_ms = conf->idle_timeout_ms > 0 ? conf->idle_timeout_ms : DEFAULT_IDLE_MS;
    settings->data_timeout_ms = conf->data_timeout_ms > 0 ? conf->data_timeout_ms : DEFAULT_DATA_MS;
}

static int fill_networks(struct smtp_settings *settings, const struct smtp_server_conf *conf,
                         struct err *err)
{
    settings->networks = mem_zero((conf->network_count + 1) * sizeof *settings->networks);
    for (size_t i = 0; i < conf->network_count; i++) {
        int rc = policy_network_parse(conf->networks[i], &settings->networks[i], err);
        if (rc != ERR_OK) {
            return rc;
        }
        settings->network_count++;
    }
    return ERR_OK;
}

static int settings_new(const struct smtp_server_conf *conf, struct smtp_settings **out,
                        struct err *err)
{
    ASSERT(conf->tls == SMTP_TLS_OFF || conf->tls_context != NULL);
    struct smtp_settings *settings = mem_zero(sizeof *settings);
    settings->references = 1;
    settings->hostname = mem_dup(span_of(conf->hostname));
    settings->tls = conf->tls;
    settings->auth = conf->auth;
    settings->tls_context = conf->tls != SMTP_TLS_OFF ? tls_context_ref(conf->tls_context) : NULL;
    settings->policy = policy_ref(conf->policy);
    settings->network_conf = (struct policy_client_conf){
        .name = "network",
        .recipients = POLICY_RECIPIENTS_ANY,
        .scopes = POLICY_SCOPE_SEND,
    };
    settings->network_client = (struct policy_client){
        .conf = &settings->network_conf,
        .index = POLICY_INDEX_NONE,
    };
    fill_machine_conf(settings, conf);
    fill_limits(settings, conf);
    int rc = fill_networks(settings, conf, err);
    if (rc != ERR_OK) {
        smtp_settings_unref(&settings);
        return rc;
    }
    *out = settings;
    return ERR_OK;
}

void smtp_settings_unref(struct smtp_settings **settings)
{
    struct smtp_settings *s = *settings;
    *settings = NULL;
    if (s == NULL || --s->references > 0) {
        return;
    }
    policy_unref(&s->policy);
    tls_context_unref(&s->tls_context);
    mem_free(s->networks);
    mem_free(s->hostname);
    mem_free(s);
}

/* ---- Life ---- */

int smtp_server_new(struct loop *loop, const struct smtp_server_conf *conf,
                    struct policy_cache *cache, struct intake *intake, struct events *events,
                    struct smtp_server **out, struct err *err)
{
    struct smtp_settings *settings = NULL;
    int rc = settings_new(conf, &settings, err);
    if (rc != ERR_OK) {
        return rc;
    }
    struct smtp_server *server = mem_zero(sizeof *server);
    server->loop = loop;
    server->settings = settings;
    server->cache = cache;
    server->intake = intake;
    server->events = events;
    atomic_init(&server->own_connections, 0);
    server->connections = conf->connections != NULL ? conf->connections : &server->own_connections;
    buf_init(&server->out, SMTP_OUT_MAX);
    *out = server;
    return ERR_OK;
}

int smtp_server_reconfigure(struct smtp_server *server, const struct smtp_server_conf *conf,
                            struct err *err)
{
    struct smtp_settings *settings = NULL;
    int rc = settings_new(conf, &settings, err);
    if (rc == ERR_OK) {
        smtp_settings_unref(&server->settings);
        server->settings = settings;
    }
    return rc;
}

size_t smtp_server_sessions(const struct smtp_server *server)
{
    return server->session_count;
}

static void drained(void *ctx)
{
    struct smtp_server *server = ctx;
    void (*on_drained)(void *) = server->on_drained;
    server->on_drained = NULL;
    if (on_drained != NULL) {
        on_drained(server->drained_ctx);
    }
}

static void server_release(struct smtp_server *server)
{
    loop_task_cancel(&server->drained_task);
    smtp_settings_unref(&server->settings);
    buf_release(&server->out);
    mem_free(server);
}

static void check_empty(struct smtp_server *server)
{
    if (server->session_count > 0) {
        return;
    }
    if (server->freed) {
        server_release(server);
    } else if (server->draining && server->on_drained != NULL) {
        loop_defer(server->loop, &server->drained_task, LOOP_TASK_QUEUE, drained, server);
    }
}

void smtp_server_drain(struct smtp_server *server, void (*on_drained)(void *ctx), void *ctx)
{
    server->draining = true;
    server->on_drained = on_drained;
    server->drained_ctx = ctx;
    for (struct smtp_session *s = server->first; s != NULL; s = s->next) {
        smtp_session_drain(s);
    }
    check_empty(server);
}

void smtp_server_abort(struct smtp_server *server)
{
    for (struct smtp_session *s = server->first; s != NULL; s = s->next) {
        smtp_session_abort(s);
    }
}

void smtp_server_free(struct smtp_server **server)
{
    struct smtp_server *s = *server;
    if (s == NULL) {
        return;
    }
    *server = NULL;
    s->freed = true;
    s->on_drained = NULL;
    smtp_server_abort(s);
    check_empty(s);
}

/* ---- Who is here ---- */

static struct smtp_session **bucket_of(struct smtp_server *server, const char *address)
{
    return &server->buckets[codec_fnv1a(span_of(address)) % SMTP_ADDRESS_BUCKETS];
}

static size_t sessions_of(struct smtp_server *server, const char *address)
{
    size_t count = 0;
    for (struct smtp_session *s = *bucket_of(server, address); s != NULL; s = s->bucket_next) {
        count += strcmp(s->address, address) == 0;
    }
    return count;
}

const char *smtp_server_enter(struct smtp_server *server, struct smtp_session *session)
{
    const struct smtp_settings *settings = session->settings;
    const char *objection = NULL;
    if (server->draining || server->freed) {
        objection = "Shutting down";
    } else if (settings->max_per_address < settings->max_connections &&
               sessions_of(server, session->address) >= settings->max_per_address) {
        objection = "Too many connections from your address";
    }
    size_t open = atomic_fetch_add_explicit(server->connections, 1, memory_order_relaxed);
    if (objection == NULL && open >= settings->max_connections) {
        objection = "Too many connections";
    }
    session->next = server->first;
    if (server->first != NULL) {
        server->first->prev = session;
    }
    server->first = session;
    struct smtp_session **bucket = bucket_of(server, session->address);
    session->bucket_next = *bucket;
    if (*bucket != NULL) {
        (*bucket)->bucket_prev = session;
    }
    *bucket = session;
    server->session_count++;
    return objection;
}

void smtp_server_leave(struct smtp_server *server, struct smtp_session *session)
{
    atomic_fetch_sub_explicit(server->connections, 1, memory_order_relaxed);
    *(session->prev != NULL ? &session->prev->next : &server->first) = session->next;
    if (session->next != NULL) {
        session->next->prev = session->prev;
    }
    *(session->bucket_prev != NULL ? &session->bucket_prev->bucket_next
                                   : bucket_of(server, session->address)) = session->bucket_next;
    if (session->bucket_next != NULL) {
        session->bucket_next->bucket_prev = session->bucket_prev;
    }
    ASSERT(server->session_count > 0);
    server->session_count--;
    check_empty(server);
}
