/* What smtp_server.c (settings, limits, drain) and smtp_session.c (one session) share; for these
 * two alone. */
#ifndef HEAVE_GATEWAY_SMTP_SESSION_PRIVATE_H
#define HEAVE_GATEWAY_SMTP_SESSION_PRIVATE_H

#include "gateway/base/stream.h"
#include "gateway/smtp.h"
#include "gateway/smtp_session.h"

#define SMTP_ADDRESS_BUCKETS 256
#define SMTP_PEER_TEXT_MAX 64

/* One configuration, shared by the sessions that began under it. One loop: a plain count. */
struct smtp_settings {
    size_t references;
    char *hostname;
    enum smtp_tls_mode tls;
    enum smtp_auth_mode auth;
    struct tls_context *tls_context;
    struct policy *policy;
    struct policy_network *networks;
    size_t network_count;
    struct policy_client_conf network_conf;
    struct policy_client network_client; /* who comes from `networks` */
    struct smtp_conf machine;
    size_t max_connections;
    size_t max_per_address;
    size_t max_held_bytes;
    int64_t idle_timeout_ms;
    int64_t data_timeout_ms;
};
void smtp_settings_unref(struct smtp_settings **settings);

struct smtp_session {
    struct smtp_session *next; /* all of the server */
    struct smtp_session *prev;
    struct smtp_session *bucket_next; /* those whose address falls into one bucket */
    struct smtp_session *bucket_prev;
    struct smtp_server *server;
    struct smtp_settings *settings;
    struct stream *stream; /* NULL after on_close */
    struct smtp *machine;
    const struct policy_client *client; /* authenticated, or by network; NULL: none */
    struct policy_auth *auth;           /* a check that runs */
    struct submission submission;       /* in use while `submitted` */
    bool submitted;
    bool opened;        /* greeted */
    bool authenticated; /* `client` was proven by a password */
    bool unread;        /* the stream keeps bytes that were shown to no avail */
    const char *auth_name;
    const char *end;       /* why it ended, when the machine does not know */
    const char *objection; /* over a limit: said instead of the greeting */
    size_t held_bytes;     /* this session's part of server->held_bytes */
    uint64_t bytes_in;
    uint64_t commands_seen; /* when the deadline was set last */
    int64_t start_ms;
    int64_t data_start_ms;
    char peer[SMTP_PEER_TEXT_MAX];
    char address[SMTP_PEER_TEXT_MAX];
    char tls_version[16];
};

struct smtp_server {
    struct loop *loop;
    struct smtp_settings *settings;
    struct policy_cache *cache;
    struct intake *intake;
    struct events *events;
    atomic_size_t own_connections;
    atomic_size_t *connections;
    struct smtp_session *first;
    struct smtp_session *buckets[SMTP_ADDRESS_BUCKETS];
    size_t session_count;
    size_t held_bytes;
    struct buf out; /* replies of the session at hand; empty between calls */
    bool draining;
    bool freed;
    struct loop_task drained_task;
    void (*on_drained)(void *ctx);
    void *drained_ctx;
};

/* ---- smtp_server.c ---- */

/* Adds the session, whose address and settings are set. Returns NULL, or why it must be turned
 * away; it has to leave in both cases. */
const char *smtp_server_enter(struct smtp_server *server, struct smtp_session *session);
/* The server may be gone afterwards. */
void smtp_server_leave(struct smtp_server *server, struct smtp_session *session);

/* ---- smtp_session.c ---- */

void smtp_session_drain(struct smtp_session *session);
void smtp_session_abort(struct smtp_session *session);

#endif
