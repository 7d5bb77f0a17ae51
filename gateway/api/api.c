#include "gateway/api/api.h"

#include "gateway/api/admin.h"
#include "gateway/api/health.h"
#include "gateway/api/messages.h"
#include "gateway/api/openapi.h"
#include "gateway/api/problem.h"
#include "gateway/api/work.h"
#include "gateway/base/clock.h"
#include "gateway/base/codec.h"

#define API_DEFAULT_RECIPIENTS 10000
#define API_CREDENTIALS_MAX 4096
#define API_ANSWER_MAX_BYTES (48u * 1024u * 1024u)

static const struct api_route routes[] = {
    {.method = "POST",
     .path = "/v1/messages",
     .access = API_SEND,
     .handle = messages_post,
     .takes_message = true},
    {.method = "GET", .path = "/v1/messages", .access = API_READ, .handle = messages_list},
    {.method = "GET", .path = "/v1/messages/{id}", .access = API_READ, .handle = messages_get},
    {.method = "DELETE", .path = "/v1/messages/{id}", .access = API_SEND, .handle = work_delete},
    {.method = "POST", .path = "/v1/admin/queue/{verb}", .access = API_ADMIN, .handle = work_post},
    {.method = "GET",
     .path = "/v1/admin/dead-letters",
     .access = API_ADMIN,
     .handle = messages_list_dead},
    {.method = "GET", .path = "/v1/admin/queue", .access = API_ADMIN, .handle = admin_queue},
    {.method = "GET", .path = "/v1/admin/messages", .access = API_ADMIN, .handle = admin_messages},
    {.method = "GET", .path = "/metrics", .access = API_METRICS, .handle = health_metrics},
    {.method = "GET", .path = "/livez", .access = API_OPEN, .handle = health_live},
    {.method = "GET", .path = "/readyz", .access = API_OPEN, .handle = health_ready},
    {.method = "GET", .path = "/openapi.json", .access = API_OPEN, .handle = openapi_get},
};
#define ROUTE_COUNT (sizeof(routes) / sizeof(routes[0]))

const struct api_route *api_routes(size_t *out_count)
{
    *out_count = ROUTE_COUNT;
    return routes;
}

/* Calls. */

static struct api_call *call_new(struct api *api, struct http_request *request)
{
    struct api_call *call = mem_zero(sizeof(*call));
    call->api = api;
    call->request = request;
    call->policy = policy_ref(api->conf.policy);
    call->next = api->first;
    if (api->first != NULL) {
        api->first->prev = call;
    }
    api->first = call;
    api->count++;
    buf_init(&call->body, 1);
    buf_init(&call->message, 1);
    request->user = call;
    return call;
}

static void call_free(struct api_call *call)
{
    struct api *api = call->api;
    ASSERT(call->request == NULL && !call->waiting);
    policy_auth_cancel(&call->auth);
    if (call->prev != NULL) {
        call->prev->next = call->next;
    } else {
        api->first = call->next;
    }
    if (call->next != NULL) {
        call->next->prev = call->prev;
    }
    api->count--;
    if (call->submitted) {
        arena_release(&call->submission.arena);
    }
    buf_release(&call->body);
    buf_release(&call->message);
    policy_unref(&call->policy);
    mem_free(call);
}

void api_call_wait(struct api_call *call)
{
    ASSERT(!call->waiting);
    call->waiting = true;
}

bool api_call_resume(struct api_call *call)
{
    ASSERT(call->waiting);
    call->waiting = false;
    if (call->request == NULL) {
        call_free(call);
        return false;
    }
    return true;
}

static void call_answer(struct api_call *call, int status, const struct http_header *headers,
                        size_t count, struct span body)
{
    struct http_request *request = call->request;
    ASSERT(request != NULL && !call->waiting);
    call->request = NULL;
    request->user = NULL;
    http_reply(request, status, headers, count, body);
    call_free(call);
}

void api_call_bytes(struct api_call *call, int status, const char *content_type, struct span body)
{
    const struct http_header headers[] = {
        {.name = SPAN_LIT("content-type"), .value = span_of(content_type)},
        {.name = SPAN_LIT("cache-control"), .value = SPAN_LIT("no-store")},
    };
    call_answer(call, status, headers, 2, body);
}

void api_call_json(struct api_call *call, int status, const struct http_header *headers,
                   size_t header_count, json_t *body)
{
    struct http_header all[8] = {
        {.name = SPAN_LIT("cache-control"), .value = SPAN_LIT("no-store")}};
    size_t count = 1;
    bool has_type = false;
    ASSERT(header_count <= 6);
    for (size_t i = 0; i < header_count; i++) {
        has_type = has_type || span_eq(headers[i].name, SPAN_LIT("content-type"));
        all[count++] = headers[i];
    }
    if (!has_type) {
        all[count++] = (struct http_header){.name = SPAN_LIT("content-type"),
                                            .value = SPAN_LIT("application/json")};
    }
    struct buf text;
    buf_init(&text, API_ANSWER_MAX_BYTES);
    int rc = api_json_write(body, &text);
    json_decref(body);
    if (rc != 0) {
        /* Memory, or an answer beyond all bounds: said without either. */
        status = 503;
        buf_reset(&text);
    }
    call_answer(call, status, all, count, buf_span(&text));
    buf_release(&text);
}

static int api_json_sink(const char *piece, size_t len, void *ctx)
{
    return buf_append(ctx, span_make(piece, len)) == 0 ? 0 : -1;
}

int api_json_write(const json_t *value, struct buf *out)
{
    int rc = json_dump_callback(value, api_json_sink, out, JSON_COMPACT);
    return rc == 0 ? buf_append_byte(out, '\n') : ERR_NOMEM;
}

json_t *api_text(struct span text)
{
    if (codec_utf8_valid(text)) {
        return json_stringn_nocheck(text.data != NULL ? text.data : "", text.len);
    }
    struct buf clean;
    buf_init(&clean, 3 * text.len + 1);
    size_t at = 0;
    int rc = 0;
    while (at < text.len && rc == 0) {
        size_t step = codec_utf8_step(span_make(text.data + at, text.len - at));
        rc = step > 0 ? buf_append(&clean, span_make(text.data + at, step))
                      : buf_append(&clean, SPAN_LIT("\xEF\xBF\xBD"));
        at += step > 0 ? step : 1;
    }
    json_t *value = json_stringn_nocheck(buf_len(&clean) > 0 ? buf_span(&clean).data : "",
                                         buf_len(&clean));
    buf_release(&clean);
    return value;
}

json_t *api_time(int64_t wall_ms)
{
    if (wall_ms <= 0) {
        return json_null();
    }
    char text[CLOCK_TEXT_MAX];
    clock_rfc3339(wall_ms, text);
    return json_string(text);
}

/* Routing. */

/* Whether `path` fits the pattern; what stands for {id} is copied to `param`. */
static bool route_fits(const char *pattern, struct span path, char param[API_PARAM_MAX + 1])
{
    struct span wanted = span_of(pattern);
    size_t brace = span_find(wanted, '{');
    if (brace == wanted.len) {
        return span_eq(wanted, path);
    }
    struct span prefix = span_make(wanted.data, brace);
    if (!span_starts(path, prefix)) {
        return false;
    }
    struct span rest = span_make(path.data + prefix.len, path.len - prefix.len);
    if (rest.len == 0 || rest.len > API_PARAM_MAX || span_find(rest, '/') != rest.len) {
        return false;
    }
    memcpy(param, rest.data, rest.len);
    param[rest.len] = '\0';
    return true;
}

static bool method_fits(const struct api_route *route, struct span method)
{
    struct span wanted = span_of(route->method);
    return span_eq(wanted, method) ||
           (span_eq(method, SPAN_LIT("HEAD")) && span_eq(wanted, SPAN_LIT("GET")));
}

/* Sets call->route, or answers 404 or 405 and returns false. */
static bool call_route(struct api_call *call)
{
    struct span method = call->request->method;
    char allow[64] = "";
    for (size_t i = 0; i < ROUTE_COUNT; i++) {
        const struct api_route *route = &routes[i];
        bool is_here = !route->takes_message || call->api->conf.intake != NULL;
        if (!is_here || !route_fits(route->path, call->request->path, call->param)) {
            continue;
        }
        if (method_fits(route, method)) {
            call->route = route;
            return true;
        }
        size_t used = strlen(allow);
        bool is_get = strcmp(route->method, "GET") == 0;
        (void)snprintf(allow + used, sizeof(allow) - used, "%s%s%s", used > 0 ? ", " : "",
                       route->method, is_get ? ", HEAD" : "");
    }
    if (allow[0] != '\0') {
        api_problem(call, &(struct problem){.status = 405,
                                            .detail = "This resource does not have that method.",
                                            .allow = allow});
    } else {
        api_refuse(call, 404, "There is no such resource; /openapi.json lists what there is.");
    }
    return false;
}

/* Who is asking. */

static bool call_on_loopback(const struct api_call *call)
{
    struct span address = span_of(call->request->peer_address);
    return span_starts(address, SPAN_LIT("127.")) || span_eq(address, SPAN_LIT("::1")) ||
           span_starts(address, SPAN_LIT("::ffff:127."));
}

/* Credentials as sent; which is NULL when there are none. */
struct credentials {
    struct span key;
    struct span basic; /* base64 */
    bool broken;       /* a scheme we do not know */
};

static struct credentials call_credentials(const struct http_request *request)
{
    struct credentials found = {0};
    struct span authorization = http_request_header(request, "authorization");
    if (authorization.data != NULL) {
        struct span rest = authorization;
        struct span scheme = span_cut(&rest, ' ');
        if (span_ieq(scheme, SPAN_LIT("bearer"))) {
            found.key = span_trim(rest);
        } else if (span_ieq(scheme, SPAN_LIT("basic"))) {
            found.basic = span_trim(rest);
        }
        found.broken = found.key.len == 0 && found.basic.len == 0;
        return found;
    }
    struct span key = http_request_header(request, "x-api-key");
    if (key.data != NULL) {
        found.key = span_trim(key);
        found.broken = found.key.len == 0;
    }
    return found;
}

static bool access_open(const struct api_call *call)
{
    enum api_access access = call->route->access;
    return access == API_OPEN || (access == API_METRICS && call->api->conf.is_admin);
}

/* What somebody without credentials is: the operator on the admin listener, a client by network, or
 * nobody. */
static bool call_without_credentials(struct api_call *call)
{
    const struct api_conf *conf = &call->api->conf;
    if (conf->allow_networks) {
        call->client = policy_by_network(call->policy, call->request->peer_address);
        call->scopes = call->client != NULL ? call->client->conf->scopes : 0;
    }
    if (conf->is_admin && !conf->admin_needs_key && call_on_loopback(call)) {
        call->scopes |= POLICY_SCOPE_READ | POLICY_SCOPE_ADMIN;
        call->operator_keyless = true;
    }
    return call->client != NULL || call->scopes != 0;
}

static bool scopes_suffice(enum api_access access, uint32_t scopes)
{
    switch (access) {
    case API_OPEN:
        return true;
    case API_METRICS:
    case API_READ:
        return (scopes & (POLICY_SCOPE_READ | POLICY_SCOPE_ADMIN)) != 0;
    case API_SEND:
        return (scopes & POLICY_SCOPE_SEND) != 0;
    case API_ADMIN:
        return (scopes & POLICY_SCOPE_ADMIN) != 0;
    }
    UNREACHABLE();
}

/* The caller is known: checks scopes and runs the resource. */
static void call_run(struct api_call *call)
{
    if (!access_open(call) && !scopes_suffice(call->route->access, call->scopes)) {
        /* The operator without key has no client to send as. */
        bool nobody = call->client == NULL;
        api_refuse(call, nobody ? 401 : 403,
                   nobody ? "This needs the key of a client."
                          : "This client does not have the scope for that.");
        return;
    }
    if (call->route->access == API_SEND && call->client == NULL) {
        api_refuse(call, 401, "Sending needs the key of a client.");
        return;
    }
    call->route->handle(call);
}

static void call_on_auth(void *ctx, const struct policy_client *client)
{
    struct api_call *call = ctx;
    call->auth = NULL;
    struct span name = client != NULL ? span_of(client->conf->name) : SPAN_LIT("");
    events_auth(call->api->conf.events, "http", call->request->peer, name, client != NULL);
    if (client == NULL) {
        api_refuse(call, 401, "The credentials are wrong.");
        return;
    }
    call->client = client;
    call->scopes = client->conf->scopes;
    call_run(call);
}

/* Starts the check of user and password. False: what was sent cannot be read. */
static bool call_auth_basic(struct api_call *call, struct span basic)
{
    struct buf decoded;
    buf_init_secret(&decoded, API_CREDENTIALS_MAX);
    bool good = basic.len <= API_CREDENTIALS_MAX &&
                codec_base64_decode(basic, false, &decoded) == 0;
    struct span password = buf_span(&decoded);
    struct span user = span_cut(&password, ':');
    good = good && user.len > 0;
    if (good) {
        call->auth = policy_auth_password(call->api->conf.cache, call->policy, user, password,
                                          call_on_auth, call);
    }
    buf_release(&decoded);
    return good;
}

static void call_authorise(struct api_call *call)
{
    struct credentials sent = call_credentials(call->request);
    if (access_open(call)) {
        call_run(call);
        return;
    }
    bool readable = !sent.broken;
    if (sent.key.len > 0 && sent.key.len <= API_CREDENTIALS_MAX) {
        call->auth = policy_auth_key(call->api->conf.cache, call->policy, sent.key, call_on_auth,
                                     call);
        return;
    }
    readable = readable && sent.key.len == 0;
    if (readable && sent.basic.len > 0) {
        readable = call_auth_basic(call, sent.basic);
        if (readable) {
            return;
        }
    }
    if (!readable) {
        api_refuse(call, 401, "The credentials cannot be read.");
        return;
    }
    (void)call_without_credentials(call); /* on_head has let nobody else in */
    call_run(call);
}

/* The handler. */

static size_t call_body_limit(const struct api_call *call)
{
    if (!call->route->takes_message) {
        return API_SMALL_BODY_BYTES;
    }
    size_t max = call->api->conf.max_message_bytes;
    struct span type = http_request_header(call->request, "content-type");
    bool is_json = span_istarts(type, SPAN_LIT("application/json"));
    return is_json ? max + max / 3 + API_JSON_EXTRA_BYTES : max;
}

/* Refusals that need no body and no password hash, so that a peer is put off before it sends much.
 */
static bool call_refuse_early(struct api_call *call)
{
    struct credentials sent = call_credentials(call->request);
    bool has_credentials = sent.key.len > 0 || sent.basic.len > 0 || sent.broken;
    if (!access_open(call) && !has_credentials && !call_without_credentials(call)) {
        api_refuse(call, 401, "This needs an API key, or user and password of a client.");
        return true;
    }
    const char *why = NULL;
    const struct policy_client *likely = call->client;
    if (sent.key.len > 0) {
        likely = policy_known_key(call->api->conf.cache, call->policy, sent.key);
    }
    enum intake_verdict ready = call->route->takes_message
                                    ? intake_ready(call->api->conf.intake, likely, &why)
                                    : INTAKE_ACCEPTED;
    if (ready == INTAKE_FULL) {
        api_problem(call, &(struct problem){.status = 503,
                                            .name = "queue-full",
                                            .detail = why,
                                            .retry_after_s = API_FULL_RETRY_S});
        return true;
    }
    if (ready != INTAKE_ACCEPTED) {
        api_unavailable(call, why);
        return true;
    }
    return false;
}

static size_t api_on_head(void *ctx, struct http_request *request)
{
    struct api_call *call = call_new(ctx, request);
    if (!call_route(call) || call_refuse_early(call)) {
        return 0;
    }
    return call_body_limit(call);
}

static void api_on_request(void *ctx, struct http_request *request)
{
    (void)ctx;
    call_authorise(request->user);
}

static void api_on_gone(void *ctx, struct http_request *request)
{
    (void)ctx;
    struct api_call *call = request->user;
    call->request = NULL;
    if (!call->waiting) {
        call_free(call);
    }
}

static void api_on_too_large(void *ctx, struct http_request *request)
{
    (void)ctx;
    struct api_call *call = request->user;
    api_problem(
        call, &(struct problem){.status = 413,
                                .name = "too-large",
                                .detail = "The request body is larger than this gateway accepts."});
}

static void api_on_session_start(void *ctx, const char *protocol)
{
    struct api *api = ctx;
    events_session_opened(api->conf.events, protocol);
}

static void api_on_session_end(void *ctx, const char *protocol, const char *peer, uint64_t requests,
                               uint64_t bytes_in, int64_t duration_ms, const char *end,
                               const char *tls_version)
{
    struct api *api = ctx;
    events_session(api->conf.events, &(struct event_session){
                                         .protocol = protocol,
                                         .peer = peer,
                                         .client = "",
                                         .helo = SPAN_LIT(""),
                                         .tls_version = tls_version,
                                         .auth = "",
                                         .requests = requests,
                                         .bytes_in = bytes_in,
                                         .duration_ms = duration_ms,
                                         .end = end,
                                     });
}

const struct http_handler *api_handler(void)
{
    static const struct http_handler handler = {
        .on_head = api_on_head,
        .on_request = api_on_request,
        .on_gone = api_on_gone,
        .on_too_large = api_on_too_large,
        .on_session_start = api_on_session_start,
        .on_session_end = api_on_session_end,
    };
    return &handler;
}

struct api *api_new(const struct api_conf *conf)
{
    struct api *api = mem_zero(sizeof(*api));
    api->conf = *conf;
    api->conf.policy = policy_ref(conf->policy);
    if (api->conf.max_recipients == 0) {
        api->conf.max_recipients = API_DEFAULT_RECIPIENTS;
    }
    return api;
}

void api_free(struct api **api)
{
    if (*api == NULL) {
        return;
    }
    ASSERT((*api)->first == NULL);
    policy_unref(&(*api)->conf.policy);
    mem_free(*api);
    *api = NULL;
}

void api_set_settings(struct api *api, const struct conf *settings)
{
    api->settings = settings;
}

void api_reconfigure(struct api *api, struct policy *policy, size_t max_message_bytes,
                     size_t max_recipients, bool admin_needs_key)
{
    struct policy *old = api->conf.policy;
    api->conf.policy = policy_ref(policy);
    policy_unref(&old);
    api->conf.max_message_bytes = max_message_bytes;
    api->conf.max_recipients = max_recipients > 0 ? max_recipients : API_DEFAULT_RECIPIENTS;
    api->conf.admin_needs_key = admin_needs_key;
}

void api_set_draining(struct api *api, bool draining)
{
    api->draining = draining;
}

size_t api_pending(const struct api *api)
{
    return api->count;
}
