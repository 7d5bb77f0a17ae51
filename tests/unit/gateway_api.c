/* The API with everything real below it but sockets: HTTP/1 machine, policy, intake, queue, a
 * private Redis. */
#include "gateway/api/api.h"

#include "gateway/api/message_json.h"
#include "gateway/api/openapi.h"
#include "gateway/base/log.h"
#include "gateway/http1.h"
#include "tests/unit/queue_harness.h"

#include <jansson.h>

#define KEY_ERP "erp-key-0123456789"
#define KEY_OPS "ops-key-0123456789"
#define KEY_READ "read-key-0123456789"

struct world {
    struct rig rig;
    struct handle handle;
    struct events *events;
    struct policy *policy;
    struct policy_cache *cache;
    struct intake *intake;
    struct api *api;
    struct api *admin;
    char hashes[4][200];
    struct policy_client_conf clients[5];
};

static const char *const accepted_domains[] = {"contoso.test"};
static const uint32_t via_hve[] = {0};
static const uint32_t via_acs[] = {1};
static const struct route_backend backends[] = {
    {.name = "hve", .recipients_per_message = 50, .internal_only = true},
    {.name = "acs", .recipients_per_message = 50},
};
static const struct route_rule rules[] = {
    {.recipient = ROUTE_INTERNAL, .via = via_hve, .via_count = 1},
    {.recipient = ROUTE_EXTERNAL, .via = via_acs, .via_count = 1},
};
static const struct route_conf route_conf = {
    .accepted_domains = accepted_domains,
    .accepted_count = 1,
    .rules = rules,
    .rule_count = 2,
    .backends = backends,
    .backend_count = 2,
};
static const char *const lane_names[] = {"alert", "normal", "bulk"};
static const int64_t lane_expires[] = {3600000, 3600000, 3600000};
static const struct intake_conf intake_conf = {
    .hostname = "gw.test",
    .route = &route_conf,
    .lane_names = lane_names,
    .lane_expires_ms = lane_expires,
    .lane_count = 3,
    .max_received = 50,
    .max_message_bytes = 100000,
};
static const char *const erp_from[] = {"*@contoso.test"};
static const char *const scanner_networks[] = {"10.20.0.0/16"};

static void world_clients(struct world *w)
{
    static const char *const secrets[] = {KEY_ERP, KEY_OPS, KEY_READ, "pa:ss word"};
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(policy_hash(span_of(secrets[i]), w->hashes[i], sizeof(w->hashes[i])), 0);
    }
    w->clients[0] = (struct policy_client_conf){.name = "erp",
                                                .api_key_hash = w->hashes[0],
                                                .from = erp_from,
                                                .from_count = 1,
                                                .may_choose_lane = true,
                                                .scopes = POLICY_SCOPE_SEND | POLICY_SCOPE_READ};
    w->clients[1] = (struct policy_client_conf){.name = "ops",
                                                .api_key_hash = w->hashes[1],
                                                .scopes = POLICY_SCOPE_SEND | POLICY_SCOPE_READ |
                                                          POLICY_SCOPE_ADMIN};
    w->clients[2] = (struct policy_client_conf){
        .name = "reader", .api_key_hash = w->hashes[2], .scopes = POLICY_SCOPE_READ};
    w->clients[3] = (struct policy_client_conf){
        .name = "hook", .user = "hook", .password_hash = w->hashes[3], .scopes = POLICY_SCOPE_SEND};
    w->clients[4] = (struct policy_client_conf){.name = "scanners",
                                                .networks = scanner_networks,
                                                .network_count = 1,
                                                .recipients = POLICY_RECIPIENTS_INTERNAL,
                                                .scopes = POLICY_SCOPE_SEND};
}

static int world_setup(void **state)
{
    struct world *w = mem_zero(sizeof(*w));
    *state = w;
    rig_init(&w->rig);
    rig_start_server(&w->rig);
    handle_open(&w->rig, &w->handle, &w->rig.conf);
    world_clients(w);
    struct err err;
    assert_int_equal(policy_new(w->clients, 5, &w->policy, &err), 0);
    w->cache = policy_cache_new(w->rig.loop);
    w->events = events_new();
    w->intake = intake_new(w->rig.loop, w->handle.queue, &intake_conf, w->events);
    struct api_conf conf = {
        .loop = w->rig.loop,
        .hostname = "gw.test",
        .max_message_bytes = intake_conf.max_message_bytes,
        .max_recipients = 100,
        .policy = w->policy,
        .cache = w->cache,
        .intake = w->intake,
        .queue = w->handle.queue,
        .events = w->events,
        .durability = QUEUE_FSYNC,
        .allow_networks = true,
    };
    w->api = api_new(&conf);
    conf.is_admin = true;
    w->admin = api_new(&conf);
    return 0;
}

static int world_teardown(void **state)
{
    struct world *w = *state;
    api_free(&w->api);
    api_free(&w->admin);
    intake_free(&w->intake);
    policy_cache_free(&w->cache);
    policy_unref(&w->policy);
    handle_close(&w->handle);
    rig_release(&w->rig);
    events_free(&w->events);
    mem_free(w);
    return 0;
}

/* One connection without a socket. */
struct line {
    struct rig *rig;
    struct http_host host;
    struct http_machine *machine;
    struct buf out;
    int status;
    json_t *body;
    char head[2000];
};

static void line_on_output(void *ctx)
{
    struct line *line = ctx;
    loop_stop(line->rig->loop);
}

static int64_t line_wall_ms(void *ctx)
{
    (void)ctx;
    return clock_wall_ms();
}

static void line_open(struct world *w, struct line *line, struct api *api, const char *peer)
{
    *line = (struct line){.rig = &w->rig};
    line->host = (struct http_host){
        .handler = api_handler(),
        .handler_ctx = api,
        .peer = peer,
        .peer_address = peer,
        .max_requests = 10,
        .on_output = line_on_output,
        .on_abort = line_on_output,
        .wall_ms = line_wall_ms,
        .ctx = line,
    };
    line->machine = http1_new(&line->host);
    buf_init(&line->out, 8 << 20);
}

static void line_close(struct line *line)
{
    if (line->machine != NULL) {
        line->machine->ops->free(line->machine);
        line->machine = NULL;
    }
    buf_release(&line->out);
    json_decref(line->body);
    line->body = NULL;
}

static void line_send(struct line *line, const char *request, const char *headers, struct span body)
{
    struct buf raw;
    buf_init(&raw, 1 << 20);
    assert_int_equal(buf_printf(&raw,
                                "%s HTTP/1.1\r\nhost: gw.test\r\n%scontent-length: %zu\r\n\r\n",
                                request, headers, body.len),
                     0);
    assert_int_equal(buf_append(&raw, body), 0);
    size_t used = 0;
    assert_int_equal(line->machine->ops->feed(line->machine, buf_span(&raw), &used), 0);
    buf_release(&raw);
}

static bool line_answered(struct line *line)
{
    struct span out = {0};
    assert_int_equal(line->machine->ops->output(line->machine, &out), 0);
    assert_int_equal(buf_append(&line->out, out), 0);
    return buf_len(&line->out) > 0;
}

static void line_receive(struct line *line)
{
    RIG_WAIT(line->rig, line_answered(line));
    struct span out = buf_span(&line->out);
    size_t end = span_search(out, SPAN_LIT("\r\n\r\n"));
    assert_true(end < out.len && end < sizeof(line->head));
    memcpy(line->head, out.data, end);
    line->head[end] = '\0';
    line->status = atoi(line->head + 9);
    line->body = json_loadb(out.data + end + 4, out.len - end - 4, 0, NULL);
}

/* Sends, waits, leaves status, head and body in `line`. */
static void ask(struct world *w, struct line *line, const char *request, const char *headers,
                const char *body)
{
    line_open(w, line, w->api, "198.51.100.7");
    line_send(line, request, headers, span_of(body));
    line_receive(line);
}

static void ask_admin(struct world *w, struct line *line, const char *request, const char *headers,
                      const char *peer)
{
    line_open(w, line, w->admin, peer);
    line_send(line, request, headers, SPAN_LIT(""));
    line_receive(line);
}

static bool head_has(const struct line *line, const char *text)
{
    return strstr(line->head, text) != NULL;
}

static const char *member(const struct line *line, const char *name)
{
    const char *text = json_string_value(json_object_get(line->body, name));
    return text != NULL ? text : "";
}

#define ERP "authorization: Bearer " KEY_ERP "\r\n"
#define OPS "authorization: Bearer " KEY_OPS "\r\n"
#define JSON_TYPE "content-type: application/json\r\n"
#define SMALL \
    "{\"from\":\"a@contoso.test\",\"to\":\"b@contoso.test\",\"subject\":\"s\",\"text\":\"t\"}"

static void test_submit_and_look_up(void **state)
{
    struct world *w = *state;
    struct line line;
    ask(w, &line, "POST /v1/messages", ERP JSON_TYPE,
        "{\"from\":\"Alerts <a@contoso.test>\",\"to\":[\"b@contoso.test\",{\"address\":\"x@example.com\",\"name\":\"X "
        "Y\"}],\"cc\":\"B@CONTOSO.test\",\"bcc\":[\"hidden@example.com\"],\"subject\":\"Gr\\u00fc\\u00dfe\",\"text\":\"hi"
        "\",\"html\":\"<p>hi</p>\",\"lane\":\"alert\",\"tags\":[\"t1\"],\"headers\":{\"X-App\":\"erp\"},\"expires_in\":\"2h\","
        "\"attachments\":[{\"name\":\"a.txt\",\"content\":\"aGVsbG8=\"}]}");
    assert_int_equal(line.status, 202);
    assert_int_equal(json_integer_value(json_object_get(line.body, "accepted")), 3);
    assert_int_equal(json_integer_value(json_object_get(line.body, "batches")), 2);
    assert_int_equal(json_array_size(json_object_get(line.body, "rejected")), 0);
    char id[64];
    (void)snprintf(id, sizeof(id), "%s", member(&line, "id"));
    char location[128];
    (void)snprintf(location, sizeof(location), "location: /v1/messages/%s\r\n", id);
    assert_true(head_has(&line, location));
    line_close(&line);

    char request[128];
    (void)snprintf(request, sizeof(request), "GET /v1/messages/%s", id);
    ask(w, &line, request, ERP, "");
    assert_int_equal(line.status, 200);
    assert_string_equal(member(&line, "id"), id);
    assert_string_equal(member(&line, "client"), "erp");
    assert_string_equal(member(&line, "lane"), "alert");
    assert_string_equal(member(&line, "from"), "a@contoso.test");
    assert_string_equal(member(&line, "state"), "queued");
    json_t *recipients = json_object_get(line.body, "recipients");
    assert_int_equal(json_array_size(recipients), 3);
    json_t *counts = json_object_get(line.body, "counts");
    assert_int_equal(json_integer_value(json_object_get(counts, "queued")), 3);
    line_close(&line);

    /* Neither another client nor nobody sees it; the operator does. */
    ask(w, &line, request, "x-api-key: " KEY_READ "\r\n", "");
    assert_int_equal(line.status, 404);
    line_close(&line);
    ask(w, &line, request, "authorization: Bearer " KEY_OPS "\r\n", "");
    assert_int_equal(line.status, 200);
    line_close(&line);
    ask_admin(w, &line, request, "", "127.0.0.1");
    assert_int_equal(line.status, 200);
    line_close(&line);
}

/* What the queue holds is the composed message: the tag and Bcc are not in it. */
static void test_stored_message(void **state)
{
    struct world *w = *state;
    struct line line;
    ask(w, &line, "POST /v1/messages", ERP JSON_TYPE,
        "{\"from\":\"a@contoso.test\",\"to\":\"b@contoso.test\",\"bcc\":\"secret@contoso.test\",\"subject\":\"s\",\"text\":"
        "\"body line\",\"lane\":\"bulk\",\"tags\":[\"secret-tag\"]}");
    assert_int_equal(line.status, 202);
    char id[64];
    (void)snprintf(id, sizeof(id), "%s", member(&line, "id"));
    line_close(&line);
    static struct claimed claimed;
    claim_wait(&w->handle, "bulk", "hve", 10, &claimed);
    assert_int_equal(claimed.count, 1);
    struct queue_lease *lease = claimed.leases[0];
    assert_true(span_eq(lease->message.id, span_of(id)));
    struct span body = lease->message.body;
    assert_true(span_search(body, SPAN_LIT("body line")) < body.len);
    assert_true(span_search(body, SPAN_LIT("with HTTP id ")) < body.len);
    assert_int_equal(span_search(body, SPAN_LIT("secret")), body.len);
    assert_int_equal(lease->batch.recipient_count, 2);
    lease_finish(lease, RECIPIENT_DELIVERED);
    lease->batch.recipients[1].state = RECIPIENT_FAILED;
    assert_int_equal(settle_wait(&w->handle, &claimed.leases[0], QUEUE_NEXT_DONE, 0), 0);
    char request[128];
    (void)snprintf(request, sizeof(request), "GET /v1/messages/%s", id);
    ask(w, &line, request, ERP, "");
    assert_string_equal(member(&line, "state"), "partial");
    json_t *first = json_array_get(json_object_get(line.body, "recipients"), 0);
    assert_string_equal(json_string_value(json_object_get(first, "last_reply")), "250 2.0.0 OK");
    line_close(&line);
}

struct complaint {
    const char *body;
    const char *pointer;
    const char *word; /* in its detail */
};
#define BASE "\"from\":\"a@contoso.test\",\"to\":\"b@contoso.test\""
static const struct complaint complaints[] = {
    {"[]", "", "object"},
    {"{\"to\":\"b@contoso.test\"}", "/from", "missing"},
    {"{\"from\":\"a@contoso.test\"}", "/to", "no recipient"},
    {"{" BASE ",\"subjct\":\"s\"}", "/subjct", "did you mean \"subject\""},
    {"{" BASE ",\"zzzzzzzz\":1}", "/zzzzzzzz", "no such member."},
    {"{" BASE ",\"a/b~c\":1}", "/a~1b~0c", "no such member"},
    {"{" BASE ",\"subject\":5}", "/subject", "string"},
    {"{" BASE ",\"subject\":\"a\\r\\nBcc: x@y.z\"}", "/subject", "line breaks"},
    {"{" BASE ",\"cc\":[\"b@contoso.test\",\"nonsense\"]}", "/cc/1", "nonsense"},
    {"{" BASE ",\"cc\":[{\"name\":\"n\"}]}", "/cc/0", "\"address\" is missing"},
    {"{" BASE ",\"cc\":{\"address\":\"a@b.c\",\"nam\":\"n\"}}", "/cc/nam", "members"},
    {"{" BASE ",\"cc\":{\"address\":\"a@b.c\",\"name\":\"n\\nm\"}}", "/cc/name", "line breaks"},
    {"{" BASE ",\"cc\":7}", "/cc", "address"},
    {"{\"from\":[\"a@contoso.test\",\"b@contoso.test\"],\"to\":\"b@contoso.test\"}", "/from",
     "one sender"},
    {"{" BASE ",\"headers\":{\"X-A\":\"b\\nc\"}}", "/headers/X-A", "line breaks"},
    {"{" BASE ",\"headers\":{\"X A\":\"b\"}}", "/headers/X A", "name of a header"},
    {"{" BASE ",\"headers\":{\"X-A\\r\\nB\":\"b\"}}", "/headers/X-A\r\nB", "name of a header"},
    {"{" BASE ",\"headers\":{\"bcc\":\"b@c.d\"}}", "/headers/bcc", "own member"},
    {"{" BASE ",\"headers\":{\"Received\":\"x\"}}", "/headers/Received", "gateway"},
    {"{" BASE ",\"headers\":{\"X-Heave-Lane\":\"alert\"}}", "/headers/X-Heave-Lane",
     "gateway's own"},
    {"{" BASE ",\"attachments\":[{\"name\":\"a\",\"content\":\"@@@\"}]}", "/attachments/0/content",
     "base64"},
    {"{" BASE ",\"attachments\":[{\"content\":\"aGk=\"}]}", "/attachments/0",
     "\"name\" is missing"},
    {"{" BASE ",\"attachments\":[{\"name\":\"a\",\"content\":\"aGk=\",\"content_type\":\"text\"}]}",
     "/attachments/0/content_type", "media type"},
    {"{" BASE ",\"attachments\":[{\"name\":\"a\\nb\",\"content\":\"aGk=\"}]}",
     "/attachments/0/name", "line breaks"},
    {"{" BASE ",\"tags\":[\"ok\",\"not ok\"]}", "/tags/1", "tag"},
    {"{" BASE ",\"send_at\":\"tomorrow\"}", "/send_at", "RFC 3339"},
    {"{" BASE ",\"send_at\":\"2999-01-01T00:00:00Z\"}", "/send_at", "year"},
    {"{" BASE ",\"expires_in\":\"0s\"}", "/expires_in", "duration"},
    {"{" BASE ",\"expires_in\":-5}", "/expires_in", "duration"},
};

static void test_complaints(void **state)
{
    struct world *w = *state;
    for (size_t i = 0; i < sizeof(complaints) / sizeof(complaints[0]); i++) {
        const struct complaint *c = &complaints[i];
        struct line line;
        ask(w, &line, "POST /v1/messages", ERP JSON_TYPE, c->body);
        json_t *error = json_array_get(json_object_get(line.body, "errors"), 0);
        const char *pointer = json_string_value(json_object_get(error, "pointer"));
        const char *detail = json_string_value(json_object_get(error, "detail"));
        if (line.status != 422 || pointer == NULL || strcmp(pointer, c->pointer) != 0 ||
            strstr(detail, c->word) == NULL || !head_has(&line, "application/problem+json")) {
            fail_msg("%s: %d %s: %s", c->body, line.status, pointer, detail);
        }
        line_close(&line);
    }
}

static void test_refusals(void **state)
{
    struct world *w = *state;
    static const struct {
        const char *request, *headers, *body;
        int status;
        const char *head;   /* somewhere in the head */
        const char *detail; /* somewhere in the detail */
    } rows[] = {
        {"POST /v1/messages", ERP JSON_TYPE, "{\"from\":\n nonsense}", 400, "", "line 2, column"},
        {"POST /v1/messages", ERP JSON_TYPE, "{\"from\":\"a\",\"from\":\"b\"}", 400, "",
         "duplicate"},
        {"POST /v1/messages", ERP JSON_TYPE, "", 400, "", "JSON"},
        {"POST /v1/messages", ERP JSON_TYPE, "{\"subject\":\"\xff\"}", 400, "", "decode byte"},
        {"POST /v1/messages", ERP JSON_TYPE, "{\"subject\":\"a\\u0000b\"}", 400, "", "\\u0000"},
        {"POST /v1/messages", ERP "content-type: text/plain\r\n", "x", 415, "", "message/rfc822"},
        {"POST /v1/messages", ERP, "x", 415, "", "message/rfc822"},
        {"POST /v1/messages", JSON_TYPE, SMALL, 401, "www-authenticate: Bearer", "key"},
        {"POST /v1/messages", JSON_TYPE "authorization: Bearer wrong\r\n", SMALL, 401,
         "www-authenticate", "wrong"},
        {"POST /v1/messages", JSON_TYPE "authorization: Digest abc\r\n", SMALL, 401,
         "www-authenticate", "read"},
        {"POST /v1/messages", JSON_TYPE "authorization: Basic !!!\r\n", SMALL, 401,
         "www-authenticate", "read"},
        {"POST /v1/messages", JSON_TYPE "x-api-key: " KEY_READ "\r\n", SMALL, 403, "", "scope"},
        {"GET /v1/admin/queue", ERP, "", 403, "", "scope"},
        {"POST /v1/admin/queue/hold", ERP JSON_TYPE, "{\"all\":true}", 403, "", "scope"},
        {"POST /v1/admin/queue/burn", OPS JSON_TYPE, "{\"all\":true}", 404, "", "replay"},
        {"POST /v1/admin/queue/hold", OPS JSON_TYPE, "[]", 400, "", "object"},
        {"GET /v1/admin/queue/hold", OPS, "", 405, "allow: POST", "method"},
        {"GET /v1/admin/dead-letters?limit=0", OPS, "", 422, "", "limit"},
        {"DELETE /v1/messages/01ARZ3NDEKTSV4RRFFQ69G5FAV-0", ERP, "", 404, "", "message"},
        {"DELETE /v1/messages/x", "x-api-key: " KEY_READ "\r\n", "", 403, "", "scope"},
        {"GET /metrics", "", "", 401, "", "key"},
        {"GET /nowhere", ERP, "", 404, "", "openapi"},
        {"GET /v1/messages/", ERP, "", 404, "", ""},
        {"GET /v1/messages/a/b", ERP, "", 404, "", ""},
        {"GET /v1/messages/..%2f", ERP, "", 404, "", "message"},
        {"GET /v1/messages/01ARZ3NDEKTSV4RRFFQ69G5FAV-0", ERP, "", 404, "", "message"},
        {"DELETE /v1/messages", ERP, "", 405, "allow: POST, GET, HEAD", "method"},
        {"POST /livez", "", "", 405, "allow: GET, HEAD", "method"},
        {"GET /v1/messages?limit=0", ERP, "", 422, "", "limit"},
        {"GET /v1/messages?client=ops", ERP, "", 422, "", "query"},
        {"GET /v1/messages?lane=%zz", ERP, "", 400, "", "decoded"},
        {"POST /v1/messages", ERP JSON_TYPE,
         "{\"from\":\"a@other.test\",\"to\":\"b@contoso.test\"}", 403, "", "sender"},
        {"POST /v1/messages", ERP JSON_TYPE, "{" BASE ",\"lane\":\"nolane\"}", 422, "", "lane"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct line line;
        ask(w, &line, rows[i].request, rows[i].headers, rows[i].body);
        if (line.status != rows[i].status || !head_has(&line, rows[i].head) ||
            strstr(member(&line, "detail"), rows[i].detail) == NULL ||
            json_integer_value(json_object_get(line.body, "status")) != rows[i].status ||
            !head_has(&line, "application/problem+json")) {
            fail_msg("row %zu %s: %s\n%s", i, rows[i].request, line.head, member(&line, "detail"));
        }
        line_close(&line);
    }
    assert_int_equal(api_pending(w->api), 0);
}

static void test_who_may_send(void **state)
{
    struct world *w = *state;
    struct line line;
    /* hook:pa:ss word */
    ask(w, &line, "POST /v1/messages", JSON_TYPE "authorization: Basic aG9vazpwYTpzcyB3b3Jk\r\n",
        SMALL);
    assert_int_equal(line.status, 202);
    line_close(&line);
    ask(w, &line, "POST /v1/messages", JSON_TYPE "authorization: Basic aG9vazp3cm9uZw==\r\n",
        SMALL);
    assert_int_equal(line.status, 401);
    line_close(&line);
    /* By network: internal recipients only. */
    line_open(w, &line, w->api, "10.20.3.4");
    line_send(
        &line, "POST /v1/messages", JSON_TYPE,
        SPAN_LIT("{\"from\":\"s@contoso.test\",\"to\":[\"b@contoso.test\",\"x@example.com\"]}"));
    line_receive(&line);
    assert_int_equal(line.status, 202);
    assert_int_equal(json_integer_value(json_object_get(line.body, "accepted")), 1);
    json_t *rejected = json_array_get(json_object_get(line.body, "rejected"), 0);
    assert_string_equal(json_string_value(json_object_get(rejected, "address")), "x@example.com");
    line_close(&line);
    line_open(w, &line, w->api, "10.20.3.4");
    line_send(&line, "POST /v1/messages", JSON_TYPE,
              SPAN_LIT("{\"from\":\"s@contoso.test\",\"to\":[\"x@example.com\"]}"));
    line_receive(&line);
    assert_int_equal(line.status, 422);
    assert_string_equal(member(&line, "type"), "urn:heave:problem:no-recipient");
    line_close(&line);
    /* Wrong credentials do not fall back to the network. */
    line_open(w, &line, w->api, "10.20.3.4");
    line_send(&line, "POST /v1/messages", JSON_TYPE "x-api-key: wrong\r\n", span_of(SMALL));
    line_receive(&line);
    assert_int_equal(line.status, 401);
    line_close(&line);
}

static void test_limits(void **state)
{
    struct world *w = *state;
    struct line line;
    struct buf body;
    buf_init(&body, 4 << 20);
    assert_int_equal(buf_append(&body, SPAN_LIT("{\"from\":\"a@contoso.test\",\"to\":[")), 0);
    for (size_t i = 0; i < 101; i++) {
        assert_int_equal(buf_printf(&body, "%s\"u%zu@contoso.test\"", i > 0 ? "," : "", i), 0);
    }
    assert_int_equal(buf_append(&body, SPAN_LIT("]}")), 0);
    ask(w, &line, "POST /v1/messages", ERP JSON_TYPE, buf_text(&body));
    assert_int_equal(line.status, 422);
    assert_true(strstr(json_string_value(json_object_get(
                           json_array_get(json_object_get(line.body, "errors"), 0), "detail")),
                       "at most 100") != NULL);
    line_close(&line);
    buf_reset(&body);
    /* The text is within the body limit, the finished message above its own. */
    assert_int_equal(buf_append(&body, SPAN_LIT("{" BASE ",\"text\":\"")), 0);
    for (size_t i = 0; i < 120000; i++) {
        assert_int_equal(buf_append_byte(&body, i % 70 == 69 ? ' ' : 'x'), 0);
    }
    assert_int_equal(buf_append(&body, SPAN_LIT("\"}")), 0);
    ask(w, &line, "POST /v1/messages", ERP JSON_TYPE, buf_text(&body));
    assert_int_equal(line.status, 413);
    line_close(&line);
    /* Two bytes a value would be eighty in memory: refused unparsed. Commas of a text are none. */
    for (int in_text = 0; in_text < 2; in_text++) {
        buf_reset(&body);
        assert_int_equal(
            buf_printf(&body, "{" BASE ",\"%s", in_text != 0 ? "text\":\"\\\"[1" : "cc\":[1"), 0);
        for (size_t i = 0; i < 200000; i++) {
            assert_int_equal(buf_append(&body, SPAN_LIT(",1")), 0);
        }
        assert_int_equal(buf_append(&body, in_text != 0 ? SPAN_LIT("\"}") : SPAN_LIT("]}")), 0);
        ask(w, &line, "POST /v1/messages", ERP JSON_TYPE, buf_text(&body));
        assert_int_equal(line.status, in_text != 0 ? 413 : 422);
        if (in_text == 0) {
            assert_true(strstr(member(&line, "detail"), "more values") != NULL);
        }
        line_close(&line);
    }
    buf_release(&body);
    /* By length alone, before the body comes. */
    line_open(w, &line, w->api, "198.51.100.7");
    size_t used = 0;
    assert_int_equal(
        line.machine->ops->feed(line.machine,
                                SPAN_LIT("POST /v1/messages HTTP/1.1\r\nhost: h\r\n" ERP
                                         "content-type: message/rfc822\r\n"
                                         "content-length: 100001\r\n\r\n"),
                                &used),
        0);
    line_receive(&line);
    assert_int_equal(line.status, 413);
    assert_string_equal(member(&line, "type"), "urn:heave:problem:too-large");
    line_close(&line);
}

static void test_idempotency(void **state)
{
    struct world *w = *state;
    struct line first;
    struct line line;
    ask(w, &first, "POST /v1/messages", ERP JSON_TYPE "idempotency-key: k1\r\n", SMALL);
    assert_int_equal(first.status, 202);
    assert_false(head_has(&first, "idempotency-replayed"));
    ask(w, &line, "POST /v1/messages", ERP JSON_TYPE "idempotency-key: k1\r\n", SMALL);
    assert_int_equal(line.status, 202);
    assert_true(head_has(&line, "idempotency-replayed: true\r\n"));
    assert_true(json_equal(first.body, line.body));
    line_close(&line);
    ask(w, &line, "POST /v1/messages", ERP JSON_TYPE "idempotency-key: k1\r\n",
        "{" BASE ",\"subject\":\"other\"}");
    assert_int_equal(line.status, 422);
    assert_string_equal(member(&line, "type"), "urn:heave:problem:idempotency-conflict");
    line_close(&line);
    /* The key belongs to the client. */
    ask(w, &line, "POST /v1/messages",
        "authorization: Bearer " KEY_OPS "\r\n" JSON_TYPE "idempotency-key: k1\r\n", SMALL);
    assert_int_equal(line.status, 202);
    assert_false(head_has(&line, "idempotency-replayed"));
    line_close(&line);
    line_close(&first);
    char headers[600];
    char key[257];
    memset(key, 'k', 256);
    key[256] = '\0';
    (void)snprintf(headers, sizeof(headers), ERP JSON_TYPE "idempotency-key: %s\r\n", key);
    ask(w, &line, "POST /v1/messages", headers, SMALL);
    assert_int_equal(line.status, 422);
    line_close(&line);
}

static void test_idempotency_in_flight(void **state)
{
    struct world *w = *state;
    struct line a;
    struct line b;
    struct line warm;
    ask(w, &warm, "GET /v1/messages", ERP,
        ""); /* the key is in the cache: both checks answer in one turn */
    line_close(&warm);
    line_open(w, &a, w->api, "198.51.100.7");
    line_open(w, &b, w->api, "198.51.100.8");
    line_send(&a, "POST /v1/messages", ERP JSON_TYPE "idempotency-key: k2\r\n", span_of(SMALL));
    line_send(&b, "POST /v1/messages", ERP JSON_TYPE "idempotency-key: k2\r\n", span_of(SMALL));
    line_receive(&b);
    line_receive(&a);
    assert_int_equal(a.status, 202);
    assert_int_equal(b.status, 409);
    assert_true(head_has(&b, "retry-after: 1"));
    line_close(&a);
    line_close(&b);
}

#define RFC822 ERP "content-type: message/rfc822\r\n"
static void test_rfc822(void **state)
{
    struct world *w = *state;
    struct line line;
    ask(w, &line, "POST /v1/messages", RFC822,
        "From: A <a@contoso.test>\nTo: b@contoso.test, \"C, D\" <c@example.com>\nBcc: d@example.com\nSubject: s\n\nx\n");
    assert_int_equal(line.status, 202);
    assert_int_equal(json_integer_value(json_object_get(line.body, "accepted")), 3);
    line_close(&line);
    ask(w, &line,
        "POST /v1/messages?from=a%40contoso.test&to=x%40contoso.test&to=y@contoso.test,z@contoso.test&lane=alert",
        RFC822, "From: A <a@contoso.test>\r\nTo: b@contoso.test\r\n\r\nx\r\n");
    assert_int_equal(line.status, 202);
    assert_int_equal(json_integer_value(json_object_get(line.body, "accepted")), 3);
    line_close(&line);
    static struct claimed claimed;
    claim_wait(&w->handle, "alert", "hve", 10, &claimed);
    bool found = false;
    for (size_t i = 0; i < claimed.count; i++) {
        struct span body = claimed.leases[i]->message.body;
        found = found ||
                span_ends(body,
                          SPAN_LIT("From: A <a@contoso.test>\r\nTo: b@contoso.test\r\n\r\nx\r\n"));
        queue_release(w->handle.queue, claimed.leases[i]);
        queue_lease_free(&claimed.leases[i]);
    }
    assert_true(found);
    ask(w, &line, "POST /v1/messages", RFC822, "To: b@contoso.test\r\n\r\nx\r\n");
    assert_int_equal(line.status, 422);
    assert_true(strstr(member(&line, "detail"), "no sender") != NULL);
    line_close(&line);
    ask(w, &line, "POST /v1/messages", RFC822, "From: a@contoso.test\r\n\r\nx\r\n");
    assert_int_equal(line.status, 422);
    assert_string_equal(member(&line, "type"), "urn:heave:problem:no-recipient");
    line_close(&line);
    line_open(w, &line, w->api, "198.51.100.7");
    line_send(&line, "POST /v1/messages", RFC822,
              SPAN_LIT("From: a@contoso.test\r\nTo: b@contoso.test\r\n\r\nx\0y\r\n"));
    line_receive(&line);
    assert_int_equal(line.status, 422);
    assert_true(strstr(member(&line, "detail"), "NUL") != NULL);
    line_close(&line);
    ask(w, &line, "POST /v1/messages?form=a", RFC822, "From: a@contoso.test\r\n\r\nx\r\n");
    assert_int_equal(line.status, 422);
    line_close(&line);
}

static void test_list(void **state)
{
    struct world *w = *state;
    struct line line;
    for (size_t i = 0; i < 3; i++) {
        ask(w, &line, "POST /v1/messages", "authorization: Bearer " KEY_OPS "\r\n" JSON_TYPE,
            SMALL);
        assert_int_equal(line.status, 202);
        line_close(&line);
    }
    size_t seen = 0;
    char cursor[200] = "";
    for (size_t page = 0; page < 10; page++) {
        char request[300];
        (void)snprintf(request, sizeof(request),
                       "GET /v1/admin/messages?client=ops&limit=2&state=unfinished%s%s",
                       cursor[0] != '\0' ? "&cursor=" : "", cursor);
        ask_admin(w, &line, request, "", "127.0.0.1");
        assert_int_equal(line.status, 200);
        json_t *messages = json_object_get(line.body, "messages");
        assert_true(json_array_size(messages) <= 2);
        for (size_t i = 0; i < json_array_size(messages); i++) {
            json_t *client = json_object_get(json_array_get(messages, i), "client");
            assert_string_equal(json_string_value(client), "ops");
            seen++;
        }
        (void)snprintf(cursor, sizeof(cursor), "%s", member(&line, "next_cursor"));
        line_close(&line);
        if (cursor[0] == '\0') {
            break;
        }
    }
    assert_true(seen >= 3);
    assert_string_equal(cursor, "");
    /* A client's own list never holds another's. */
    ask(w, &line, "GET /v1/messages?limit=500", "authorization: Bearer " KEY_READ "\r\n", "");
    assert_int_equal(line.status, 200);
    assert_int_equal(json_array_size(json_object_get(line.body, "messages")), 0);
    line_close(&line);
}

static void test_admin_listener(void **state)
{
    struct world *w = *state;
    struct line line;
    ask_admin(w, &line, "GET /v1/admin/queue", "", "127.0.0.1");
    assert_int_equal(line.status, 200);
    assert_true(json_is_array(json_object_get(line.body, "queues")));
    assert_true(json_integer_value(json_object_get(line.body, "messages_open")) > 0);
    line_close(&line);
    ask_admin(w, &line, "GET /v1/admin/queue", "", "198.51.100.9");
    assert_int_equal(line.status, 401);
    line_close(&line);
    ask_admin(w, &line, "GET /v1/admin/queue", "x-api-key: " KEY_OPS "\r\n", "198.51.100.9");
    assert_int_equal(line.status, 200);
    line_close(&line);
    api_reconfigure(w->admin, w->policy, 100000, 100, true);
    ask_admin(w, &line, "GET /v1/admin/queue", "", "::1");
    assert_int_equal(line.status, 401);
    line_close(&line);
    api_reconfigure(w->admin, w->policy, 100000, 100, false);
    /* The operator without a key has no client to send as. */
    line_open(w, &line, w->admin, "127.0.0.1");
    line_send(&line, "POST /v1/messages", JSON_TYPE, span_of(SMALL));
    line_receive(&line);
    assert_int_equal(line.status, 401);
    line_close(&line);
}

static void test_health(void **state)
{
    struct world *w = *state;
    struct line line;
    ask(w, &line, "GET /livez", "", "");
    assert_int_equal(line.status, 200);
    line_close(&line);
    ask(w, &line, "GET /readyz", "", "");
    assert_int_equal(line.status, 200);
    assert_string_equal(member(&line, "durability"), "fsync");
    line_close(&line);
    api_set_draining(w->api, true);
    ask(w, &line, "GET /readyz", "", "");
    assert_int_equal(line.status, 503);
    assert_true(strstr(member(&line, "reason"), "draining") != NULL);
    line_close(&line);
    api_set_draining(w->api, false);
    ask_admin(w, &line, "GET /metrics", "", "198.51.100.9");
    assert_int_equal(line.status, 200);
    assert_true(head_has(&line, "text/plain; version=0.0.4"));
    assert_true(span_search(buf_span(&line.out), SPAN_LIT("lane=\"normal\"")) < buf_len(&line.out));
    line_close(&line);
    ask(w, &line, "HEAD /readyz", "", "");
    assert_int_equal(line.status, 200);
    assert_null(line.body);
    line_close(&line);
}

/* Orders that cannot be read, each with where. */
static void test_bad_orders(void **state)
{
    struct world *w = *state;
    static const struct {
        const char *verb, *body, *pointer;
    } rows[] = {
        {"hold", "{}", "/selector"},
        {"hold", "{\"selector\":{}}", "/selector"},
        {"hold", "{\"ids\":[]}", "/selector"},
        {"hold", "{\"ids\":[7]}", "/ids"},
        {"hold", "{\"all\":1}", "/all"},
        {"hold", "{\"all\":true,\"lanes\":\"bulk\"}", "/lanes"},
        {"hold", "{\"selector\":{\"lain\":\"bulk\"}}", "/selector/lain"},
        {"hold", "{\"selector\":{\"lane\":3}}", "/selector/lane"},
        {"hold", "{\"selector\":{\"state\":\"asleep\"}}", "/selector/state"},
        {"hold", "{\"selector\":{\"older_than\":\"long\"}}", "/selector/older_than"},
        {"hold", "{\"all\":true,\"limit\":0}", "/limit"},
        {"hold", "{\"all\":true,\"to\":\"hve\"}", "/to"},
        {"hold", "{\"all\":true,\"reset\":true}", "/reset"},
        {"move", "{\"all\":true}", "/to"},
        {"move", "{\"all\":true,\"to\":\"nowhere\"}", "/to"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct line line;
        char request[64];
        (void)snprintf(request, sizeof(request), "POST /v1/admin/queue/%s", rows[i].verb);
        ask(w, &line, request, OPS JSON_TYPE, rows[i].body);
        const json_t *error = json_array_get(json_object_get(line.body, "errors"), 0);
        const char *pointer = json_string_value(json_object_get(error, "pointer"));
        if (line.status != 422 || pointer == NULL || strcmp(pointer, rows[i].pointer) != 0) {
            fail_msg("row %zu: %d at %s", i, line.status, pointer != NULL ? pointer : "nothing");
        }
        line_close(&line);
    }
    struct line line;
    ask(w, &line, "POST /v1/admin/queue/hold", OPS JSON_TYPE, "{\"all\":true,\"cursor\":\"y0:\"}");
    assert_int_equal(line.status, 422);
    line_close(&line);
    ask(w, &line, "POST /v1/admin/queue/hold", OPS JSON_TYPE,
        "{\"selector\":{\"client\":\"nobody\"}}");
    assert_int_equal(line.status, 200);
    assert_int_equal(json_integer_value(json_object_get(line.body, "changed")), 0);
    assert_true(json_is_null(json_object_get(line.body, "next_cursor")));
    line_close(&line);
}

static void test_openapi(void **state)
{
    struct world *w = *state;
    struct line line;
    ask(w, &line, "GET /openapi.json", "", "");
    assert_int_equal(line.status, 200);
    assert_string_equal(member(&line, "openapi"), "3.1.0");
    json_t *paths = json_object_get(line.body, "paths");
    size_t count = 0;
    const struct api_route *routes = api_routes(&count);
    for (size_t i = 0; i < count; i++) {
        char method[8] = "";
        for (size_t j = 0; routes[i].method[j] != '\0'; j++) {
            method[j] = (char)(routes[i].method[j] + ('a' - 'A'));
        }
        json_t *operation = json_object_get(json_object_get(paths, routes[i].path), method);
        if (!json_is_object(json_object_get(operation, "responses"))) {
            fail_msg("%s %s is not in the document", routes[i].method, routes[i].path);
        }
    }
    size_t operations = 0;
    const char *path = NULL;
    json_t *item = NULL;
    json_object_foreach(paths, path, item)
    {
        operations += json_object_size(item);
    }
    assert_int_equal(operations, count);
    /* Every reference leads somewhere. */
    char *text = json_dumps(line.body, 0);
    json_t *schemas = json_object_get(json_object_get(line.body, "components"), "schemas");
    for (char *at = strstr(text, "#/components/schemas/"); at != NULL;
         at = strstr(at, "#/components/schemas/")) {
        at += strlen("#/components/schemas/");
        char name[64] = "";
        memcpy(name, at, strcspn(at, "\""));
        assert_non_null(json_object_get(schemas, name));
    }
    free(text); /* the library's */
    line_close(&line);
}

/* The peer goes while intake works: the call ends without a request, and the message is there. */
static void test_peer_gone(void **state)
{
    struct world *w = *state;
    struct line line;
    ask(w, &line, "GET /v1/messages?lane=bulk", ERP, "");
    line_close(&line);
    line_open(w, &line, w->api, "198.51.100.7");
    line_send(&line, "POST /v1/messages", ERP JSON_TYPE "idempotency-key: gone\r\n",
              span_of(SMALL));
    line_close(&line); /* inside the check of the key */
    assert_int_equal(api_pending(w->api), 0);
    line_open(w, &line, w->api, "198.51.100.7");
    line_send(&line, "POST /v1/messages", ERP JSON_TYPE "idempotency-key: gone\r\n",
              span_of(SMALL));
    RIG_WAIT(&w->rig, (loop_stop(w->rig.loop), intake_pending(w->intake) == 1));
    line_close(&line); /* inside intake */
    assert_int_equal(api_pending(w->api), 1);
    RIG_WAIT(&w->rig, (loop_stop(w->rig.loop), api_pending(w->api) == 0));
    ask(w, &line, "POST /v1/messages", ERP JSON_TYPE "idempotency-key: gone\r\n", SMALL);
    assert_int_equal(line.status, 202);
    assert_true(head_has(&line, "idempotency-replayed: true"));
    line_close(&line);
}

static void test_redis_away(void **state)
{
    struct world *w = *state;
    struct line line;
    rig_stop_server(&w->rig);
    RIG_WAIT(&w->rig, !w->handle.up);
    ask(w, &line, "POST /v1/messages", ERP JSON_TYPE, SMALL);
    assert_int_equal(line.status, 503);
    assert_true(head_has(&line, "retry-after: "));
    line_close(&line);
    ask(w, &line, "GET /v1/messages/01ARZ3NDEKTSV4RRFFQ69G5FAV-0", ERP, "");
    assert_int_equal(line.status, 503);
    line_close(&line);
    ask(w, &line, "GET /readyz", "", "");
    assert_int_equal(line.status, 503);
    assert_string_equal(member(&line, "redis"), "down");
    line_close(&line);
    ask_admin(w, &line, "GET /metrics", "", "127.0.0.1");
    assert_int_equal(line.status, 200);
    line_close(&line);
    rig_start_server(&w->rig);
    RIG_WAIT(&w->rig, w->handle.up);
    ask(w, &line, "POST /v1/messages", ERP JSON_TYPE, SMALL);
    assert_int_equal(line.status, 202);
    line_close(&line);
}

/* Admission refuses: the key is free again, and the answer asks for patience. */
static void test_queue_full(void **state)
{
    struct world *w = *state;
    struct handle small;
    struct queue_conf conf = w->rig.conf;
    conf.max_bytes = 1;
    handle_open(&w->rig, &small, &conf);
    struct intake *intake = intake_new(w->rig.loop, small.queue, &intake_conf, w->events);
    struct api_conf full_conf = {
        .loop = w->rig.loop,
        .hostname = "gw.test",
        .max_message_bytes = intake_conf.max_message_bytes,
        .policy = w->policy,
        .cache = w->cache,
        .intake = intake,
        .queue = small.queue,
        .events = w->events,
    };
    struct api *api = api_new(&full_conf);
    struct line line;
    line_open(w, &line, api, "198.51.100.7");
    line_send(&line, "POST /v1/messages", ERP JSON_TYPE "idempotency-key: full\r\n",
              span_of(SMALL));
    line_receive(&line);
    assert_int_equal(line.status, 503);
    assert_true(head_has(&line, "retry-after: 30"));
    assert_string_equal(member(&line, "type"), "urn:heave:problem:queue-full");
    line_close(&line);
    api_free(&api);
    intake_free(&intake);
    handle_close(&small);
    ask(w, &line, "POST /v1/messages", ERP JSON_TYPE "idempotency-key: full\r\n", SMALL);
    assert_int_equal(line.status, 202);
    assert_false(head_has(&line, "idempotency-replayed"));
    line_close(&line);
}

static void test_durations(void **state)
{
    (void)state;
    int64_t ms = 0;
    assert_int_equal(message_duration(SPAN_LIT("90"), &ms), 0);
    assert_int_equal(ms, 90000);
    assert_int_equal(message_duration(SPAN_LIT("15m"), &ms), 0);
    assert_int_equal(ms, 900000);
    assert_int_equal(message_duration(SPAN_LIT("3d"), &ms), 0);
    assert_int_equal(ms, INT64_C(259200000));
    static const char *const bad[] = {"",    "0",   "h",   "1w",
                                      "31d", "-1s", "1 h", "99999999999999999999"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_int_equal(message_duration(span_of(bad[i]), &ms), ERR_INVAL);
    }
}

int main(void)
{
    (void)signal(SIGPIPE, SIG_IGN);
    log_configure(LOG_ERROR, LOG_FORM_TEXT, false);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_submit_and_look_up),
        cmocka_unit_test(test_stored_message),
        cmocka_unit_test(test_complaints),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_who_may_send),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_idempotency),
        cmocka_unit_test(test_idempotency_in_flight),
        cmocka_unit_test(test_rfc822),
        cmocka_unit_test(test_list),
        cmocka_unit_test(test_admin_listener),
        cmocka_unit_test(test_health),
        cmocka_unit_test(test_bad_orders),
        cmocka_unit_test(test_openapi),
        cmocka_unit_test(test_peer_gone),
        cmocka_unit_test(test_redis_away),
        cmocka_unit_test(test_queue_full),
        cmocka_unit_test(test_durations),
    };
    return cmocka_run_group_tests(tests, world_setup, world_teardown);
}
