#include "bench/sim/sim_token.h"

#include "bench/sim/jwt.h"
#include "bench/sim/rest.h"
#include "gateway/base/clock.h"
#include "gateway/base/codec.h"

#include <inttypes.h>
#include <stdio.h>

#define FORM_MAX ((size_t)64 * 1024)
#define FIELD_MAX 4096

struct token_service {
    struct rest *rest;
    struct sim *sim;
};

/* One way to be refused (services.md 4.6): HTTP status, `error`, AADSTS number, text. */
struct token_refusal {
    int status;
    const char *error;
    int number;
    const char *text;
};
static const struct token_refusal WRONG_SECRET = {
    401, "invalid_client", 7000215,
    "Invalid client secret provided. Ensure the secret being sent in the request is the client secret value, not the "
    "client secret ID."};
static const struct token_refusal NO_APP = {400, "unauthorized_client", 700016,
                                            "Application was not found in the directory."};
static const struct token_refusal NO_TENANT = {400, "invalid_request", 90002, "Tenant not found."};
static const struct token_refusal BAD_SCOPE = {
    400, "invalid_scope", 70011,
    "The provided request must include a 'scope' input parameter. The provided value for the input parameter 'scope' is "
    "not valid: client credential flows must have a scope value with /.default suffixed to the resource identifier."};
static const struct token_refusal NO_RESOURCE = {
    400, "invalid_resource", 500011, "The resource principal was not found in the tenant."};
static const struct token_refusal BAD_GRANT = {400, "unsupported_grant_type", 70003,
                                               "The app requested an unsupported grant type."};
static const struct token_refusal NO_FIELD = {
    400, "invalid_request", 900144,
    "The request body must contain the parameters client_id, scope and "
    "client_secret."};
static const struct token_refusal NOT_FOUND = {404, "invalid_request", 90014,
                                               "There is no such endpoint."};
static const struct token_refusal TOO_LARGE = {413, "invalid_request", 90014,
                                               "The request is too large."};

static const char *const RESOURCES[] = {
    "https://graph.microsoft.com",
    "https://communication.azure.com",
    "https://outlook.office365.com",
    "https://outlook.office.com",
};

static void put_refusal(struct rest_call *call, const struct token_refusal *refusal)
{
    char at[CLOCK_TEXT_MAX];
    char trace[REST_UUID_LEN + 1];
    char correlation[REST_UUID_LEN + 1];
    char text[1200];
    clock_rfc3339(clock_wall_ms(), at);
    rest_uuid(trace);
    rest_uuid(correlation);
    (void)snprintf(text, sizeof(text), "AADSTS%d: %s Trace ID: %s Correlation ID: %s Timestamp: %s",
                   refusal->number, refusal->text, trace, correlation, at);
    rest_json(call, refusal->status,
              json_pack("{s:s, s:s, s:[i], s:s, s:s, s:s, s:s}", "error", refusal->error,
                        "error_description", text, "error_codes", refusal->number, "timestamp", at,
                        "trace_id", trace, "correlation_id", correlation, "error_uri",
                        "https://login.microsoftonline.com/error"));
}

static void token_refuse(struct rest_call *call, const struct token_refusal *refusal)
{
    struct ledger_counts *counts = ledger_counts(call->sim->ledger, SIM_TOKEN);
    if (refusal == &WRONG_SECRET || refusal == &NO_APP) {
        counts->auth_failures++;
    } else {
        counts->rejected++;
    }
    put_refusal(call, refusal);
    rest_reply(call);
}

/* One field of the form, decoded into `out`. */
static bool form_field(struct span form, const char *name, char *out, size_t room)
{
    while (form.len > 0) {
        struct span value = span_cut(&form, '&');
        if (!span_eq(span_cut(&value, '='), span_of(name))) {
            continue;
        }
        struct buf text;
        buf_init_secret(&text, room - 1);
        int result = codec_percent_decode(value, true, &text);
        if (result == 0) {
            (void)snprintf(out, room, "%.*s", SPAN_FMT(buf_span(&text)));
        }
        buf_release(&text);
        return result == 0;
    }
    return false;
}

struct token_form {
    char grant[100];
    char client[200];
    char scope[500];
    char secret[FIELD_MAX];
};

/* The secret may come in the form or as Basic (RFC 6749 2.3.1); MSAL uses the form. */
static bool read_form(struct rest_call *call, struct token_form *form)
{
    struct span body = buf_span(&call->request->body);
    *form = (struct token_form){0};
    return form_field(body, "grant_type", form->grant, sizeof(form->grant)) &&
           form_field(body, "client_id", form->client, sizeof(form->client)) &&
           form_field(body, "scope", form->scope, sizeof(form->scope)) &&
           form_field(body, "client_secret", form->secret, sizeof(form->secret));
}

/* MSAL adds "openid profile offline_access" to scopes; the one with /.default counts. */
static const struct token_refusal *find_audience(const char *scope, char *out, size_t room)
{
    struct span rest = span_of(scope);
    while (rest.len > 0) {
        struct span word = span_cut(&rest, ' ');
        if (!span_ends(word, SPAN_LIT("/.default"))) {
            continue;
        }
        struct span resource = span_make(word.data, word.len - 9);
        if (span_ends(resource, SPAN_LIT("/"))) {
            resource.len--;
        }
        for (size_t i = 0; i < sizeof(RESOURCES) / sizeof(RESOURCES[0]); i++) {
            if (span_ieq(resource, span_of(RESOURCES[i]))) {
                (void)snprintf(out, room, "%s", RESOURCES[i]);
                return NULL;
            }
        }
        return &NO_RESOURCE;
    }
    return &BAD_SCOPE;
}

static const struct token_refusal *check_form(const struct sim_conf *conf,
                                              const struct token_form *form, struct jwt *jwt)
{
    struct span client = {0};
    struct span secret = sim_list_secret(&conf->clients, span_of(form->client), &client);
    if (strcmp(form->grant, "client_credentials") != 0) {
        return &BAD_GRANT;
    }
    if (secret.data == NULL) {
        return &NO_APP;
    }
    if (!jwt_secret_eq(secret, span_of(form->secret))) {
        return &WRONG_SECRET;
    }
    (void)snprintf(jwt->app, sizeof(jwt->app), "%.*s", SPAN_FMT(client));
    return find_audience(form->scope, jwt->audience, sizeof(jwt->audience));
}

static void issue(struct rest_call *call, struct jwt *jwt)
{
    const struct sim_conf *conf = call->sim->conf;
    struct buf token;
    buf_init_secret(&token, 16384);
    jwt->issued_s = clock_wall_ms() / 1000;
    int64_t life_s = call->expired ? -1 : (int64_t)conf->token_lifetime_s;
    jwt->expires_s = jwt->issued_s + life_s;
    (void)snprintf(jwt->tenant, sizeof(jwt->tenant), "%s", conf->tenant);
    if (strcmp(conf->token_roles, "none") != 0) {
        (void)snprintf(jwt->roles, sizeof(jwt->roles), "%s", conf->token_roles);
    }
    int result = jwt_issue(span_make((const char *)call->sim->token_key, SIM_TOKEN_KEY_BYTES), jwt,
                           &token);
    const char *text = result == 0 ? buf_text(&token) : NULL;
    ASSERT(text != NULL);
    /* An expired token is announced with its usual life, as a clock that is wrong would make it. */
    json_int_t expires_in = (json_int_t)(call->expired ? (int64_t)conf->token_lifetime_s : life_s);
    rest_json(call, 200,
              json_pack("{s:s, s:I, s:I, s:s}", "token_type", "Bearer", "expires_in", expires_in,
                        "ext_expires_in", expires_in, "access_token", text));
    buf_release(&token);
    rest_header(call, "cache-control", SPAN_LIT("no-store, no-cache"));
    ledger_counts(call->sim->ledger, SIM_TOKEN)->issued++;
    if (rest_accepted(call, span_of(jwt->app))) {
        rest_reply(call);
    }
}

static void token_request(struct rest_call *call)
{
    struct token_form form;
    struct jwt jwt = {0};
    const struct token_refusal *refusal = NULL;
    if (!span_eq(call->request->method, SPAN_LIT("POST"))) {
        refusal = &NOT_FOUND;
    } else if (!read_form(call, &form)) {
        refusal = &NO_FIELD;
    } else {
        refusal = check_form(call->sim->conf, &form, &jwt);
    }
    mem_wipe(form.secret, sizeof(form.secret));
    if (refusal != NULL) {
        token_refuse(call, refusal);
    } else {
        issue(call, &jwt);
    }
}

/* `https://authority/tenant` of this very server, as the caller named it. */
static void own_url(const struct rest_call *call, char *out, size_t room)
{
    (void)snprintf(out, room, "https://%.*s/%s", SPAN_FMT(call->request->authority),
                   call->sim->conf->tenant);
}

static void configuration_request(struct rest_call *call)
{
    char base[600];
    char urls[5][700];
    static const char *const PATHS[] = {"/v2.0", "/oauth2/v2.0/token", "/oauth2/v2.0/authorize",
                                        "/discovery/v2.0/keys", "/oauth2/v2.0/logout"};
    own_url(call, base, sizeof(base));
    for (size_t i = 0; i < 5; i++) {
        (void)snprintf(urls[i], sizeof(urls[i]), "%s%s", base, PATHS[i]);
    }
    rest_json(call, 200,
              json_pack("{s:s, s:s, s:s, s:s, s:s, s:[s,s], s:[s], s:[s], s:[s]}", "issuer",
                        urls[0], "token_endpoint", urls[1], "authorization_endpoint", urls[2],
                        "jwks_uri", urls[3], "end_session_endpoint", urls[4],
                        "token_endpoint_auth_methods_supported", "client_secret_post",
                        "client_secret_basic", "response_types_supported", "code",
                        "subject_types_supported", "pairwise",
                        "id_token_signing_alg_values_supported", "RS256"));
    rest_reply(call);
}

static void discovery_request(struct rest_call *call)
{
    char url[700];
    char base[600];
    char host[300];
    own_url(call, base, sizeof(base));
    (void)snprintf(url, sizeof(url), "%s/v2.0/.well-known/openid-configuration", base);
    (void)snprintf(host, sizeof(host), "%.*s", SPAN_FMT(call->request->authority));
    rest_json(call, 200,
              json_pack("{s:s, s:s, s:[{s:s, s:s, s:[s]}]}", "tenant_discovery_endpoint", url,
                        "api-version", "1.1", "metadata", "preferred_network", host,
                        "preferred_cache", host, "aliases", host));
    rest_reply(call);
}

static void keys_request(struct rest_call *call)
{
    rest_json(call, 200, json_pack("{s:[]}", "keys"));
    rest_reply(call);
}

struct token_route {
    const char *path; /* after "/tenant" */
    void (*run)(struct rest_call *call);
};
static const struct token_route ROUTES[] = {
    {"oauth2/v2.0/token", token_request},
    {"v2.0/.well-known/openid-configuration", configuration_request},
    {"discovery/v2.0/keys", keys_request},
};

static void handle(void *ctx, struct rest_call *call)
{
    (void)ctx;
    struct span rest = call->request->path;
    if (span_starts(rest, SPAN_LIT("/"))) {
        rest = span_make(rest.data + 1, rest.len - 1);
    }
    struct span tenant = span_cut(&rest, '/');
    if (call->too_large) {
        token_refuse(call, &TOO_LARGE);
        return;
    }
    if (span_eq(rest, SPAN_LIT("discovery/instance"))) {
        discovery_request(call);
        return;
    }
    for (size_t i = 0; i < sizeof(ROUTES) / sizeof(ROUTES[0]); i++) {
        if (span_eq(rest, span_of(ROUTES[i].path))) {
            if (span_ieq(tenant, span_of(call->sim->conf->tenant))) {
                ROUTES[i].run(call);
            } else {
                token_refuse(call, &NO_TENANT);
            }
            return;
        }
    }
    token_refuse(call, &NOT_FOUND);
}

static size_t begin(void *ctx, struct rest_call *call)
{
    (void)ctx;
    (void)call;
    return FORM_MAX;
}

/* Injected errors: `code` is OAuth's error. */
static void refuse(void *ctx, struct rest_call *call, const struct rest_error *error)
{
    (void)ctx;
    const struct token_refusal refusal = {
        .status = error->status,
        .error = error->code != NULL ? error->code : "temporarily_unavailable",
        .number = 90033,
        .text = error->message != NULL ? error->message
                                       : "A transient error has occurred. Please try again.",
    };
    put_refusal(call, &refusal);
}

static struct span scope(void *ctx, struct rest_call *call, char *room, size_t room_bytes)
{
    (void)ctx;
    (void)call;
    (void)room;
    (void)room_bytes;
    return SPAN_LIT("token");
}

static const struct rest_ops TOKEN_OPS = {
    .service = SIM_TOKEN,
    .begin = begin,
    .handle = handle,
    .refuse = refuse,
    .scope = scope,
};

int token_open(struct sim *sim, struct token_service **out, struct err *err)
{
    struct token_service *service = mem_zero(sizeof(*service));
    service->sim = sim;
    int result = rest_open(sim, &TOKEN_OPS, service, &service->rest, err);
    if (result != 0) {
        mem_free(service);
        return result;
    }
    *out = service;
    return 0;
}

void token_close(struct token_service **service)
{
    if (*service != NULL) {
        rest_close(&(*service)->rest);
        mem_free(*service);
        *service = NULL;
    }
}
