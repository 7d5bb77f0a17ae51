/* The HTTP resources: which there are, who may use them, what they answer.
 *
 * One api per ingress loop and per kind of listener (public, admin). It is the handler of an
 * http_server: give api_handler() and the api itself to http_server_new(). serve.c wires it like
 * this:
 *
 *     struct api *api = api_new(&conf);
 *     struct http_server *server = http_server_new(loop, api_handler(), api, &limits);
 *     ... listener callback: http_server_accept(server, socket, tls);
 *     ... drain: api_set_draining(api, true); close the listener; http_server_drain(server);
 *         wait until http_server_sessions(server) and api_pending(api) are 0
 *     http_server_free(&server); api_free(&api);
 *
 * Who is asking: `Authorization: Bearer KEY`, `X-Api-Key: KEY`, or `Authorization: Basic` with a
 * client's user and password; without any of these, with allow_networks, the client whose network
 * holds the peer. Credentials that are sent and wrong are 401, never a fall back to the network.
 * Scopes: POST needs send; GET of messages needs read (own messages) or admin (all); /v1/admin
 * needs admin; /metrics needs read or admin; /livez, /readyz and /openapi.json are open.
 *
 * The admin listener (is_admin): a peer on the loopback interface without credentials has read and
 * admin, so that probes, scrapers and the command line work on the machine itself; with
 * admin_needs_key (set it when any client of the configuration has the scope admin) it needs a key
 * like everybody, except for /metrics. Peers from elsewhere always need a key, except for /livez,
 * /readyz and /metrics: who opens that listener to the network opens those.
 *
 * Errors are application/problem+json (RFC 9457) with `errors: [{pointer, detail}]` for members of
 * a JSON body. Our own trouble is 503 with Retry-After, never another 5xx.
 *
 * Must not know: sockets, Redis. Thread: the loop's. */
#ifndef HEAVE_GATEWAY_API_API_H
#define HEAVE_GATEWAY_API_API_H

#include "gateway/http.h"
#include "gateway/intake.h"
#include "gateway/policy.h"
#include "queue/queue.h"

#include <stdbool.h>
#include <stddef.h>

struct api;
struct conf;

/* Everything is borrowed and must outlive the api, except `policy`, of which a reference is taken.
 */
struct api_conf {
    struct loop *loop;
    const char *hostname;     /* for `instance` and the OpenAPI document */
    size_t max_message_bytes; /* of the finished RFC 5322 message; JSON bodies may be 4/3 of it plus
                                 1 MiB */
    size_t max_recipients;    /* to + cc + bcc; 0: 10,000 */
    struct policy *policy;
    struct policy_cache *cache;
    struct intake *intake; /* NULL: this listener takes no messages (404 for POST) */
    struct queue *queue;
    struct events *events;
    enum queue_durability durability;  /* told by /readyz */
    const struct admission *admission; /* told by /readyz and /v1/admin/queue; NULL: all is open */
    bool allow_networks;               /* clients by network, without credentials */
    bool is_admin;                     /* this is the admin listener */
    bool admin_needs_key;
};

struct api *api_new(const struct api_conf *conf);
/* The api must have no session left (http_server_free first). Calls still waiting for intake or
 * queue must have been answered: api_pending() is 0. */
void api_free(struct api **api);
/* The handler's ctx is the struct api. */
const struct http_handler *api_handler(void);
/* A reload: requests that run keep the old policy. */
void api_reconfigure(struct api *api, struct policy *policy, size_t max_message_bytes,
                     size_t max_recipients, bool admin_needs_key);
/* What operator work needs of the configuration: backends to move to, how long lanes keep messages.
 * Borrowed until the next call; NULL: there is nothing to move to. */
void api_set_settings(struct api *api, const struct conf *settings);
/* /readyz answers 503 from now on. */
void api_set_draining(struct api *api, bool draining);
/* Requests not answered yet or whose work outlives their peer. */
size_t api_pending(const struct api *api);

/* One row of the table of resources, for the OpenAPI document and its test. */
enum api_access {
    API_OPEN,    /* everybody */
    API_METRICS, /* read or admin; everybody on the admin listener */
    API_SEND,
    API_READ, /* read or admin */
    API_ADMIN,
};
struct api_call;
struct api_route {
    const char *method;
    const char *path; /* "{id}" stands for one segment */
    enum api_access access;
    void (*handle)(struct api_call *call);
    bool takes_message; /* the body may be as large as a message; others take 64 KiB */
};
const struct api_route *api_routes(size_t *out_count);

#endif
