#include "bench/sim/control.h"

#include "gateway/http.h"
#include "gateway/listener.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#define BODY_MAX ((size_t)1 << 20)
#define ANSWER_MAX ((size_t)1 << 30)
#define STORED_MAX ((size_t)64 << 20)
#define LINES_DEFAULT 250000

struct control {
    struct sim *sim;
    struct acs *acs;
    struct graph *graph;
    struct listener *listener;
    struct http_server *server;
};

static void answer(struct http_request *request, int status, const char *type, struct span body)
{
    const struct http_header header = {.name = SPAN_LIT("content-type"), .value = span_of(type)};
    http_reply(request, status, &header, 1, body);
}

static void answer_problem(struct http_request *request, int status, const char *text)
{
    char body[700];
    json_t *json = json_pack("{s:s}", "error", text);
    char *dumped = json_dumps(json, JSON_COMPACT);
    (void)snprintf(body, sizeof(body), "%s\n", dumped != NULL ? dumped : "{}");
    free(dumped);
    json_decref(json);
    answer(request, status, "application/json", span_of(body));
}

static void get_summary(struct control *control, struct http_request *request)
{
    struct buf out;
    buf_init(&out, 16384);
    if (ledger_summary(control->sim->ledger, &out) == 0) {
        answer(request, 200, "application/json", buf_span(&out));
    } else {
        answer_problem(request, 500, "The summary does not fit.");
    }
    buf_release(&out);
}

static uint64_t query_number(struct http_request *request, const char *name, uint64_t fallback)
{
    struct span text = {0};
    uint64_t value = fallback;
    if (http_request_query(request, name, &text) && span_to_u64(text, UINT64_MAX, &value) != 0) {
        value = fallback;
    }
    return value;
}

static void get_deliveries(struct control *control, struct http_request *request)
{
    struct ledger_filter filter = {0};
    /* What is not asked for stays empty: no filter. */
    (void)http_request_query(request, "service", &filter.service);
    (void)http_request_query(request, "message_id", &filter.message_id);
    (void)http_request_query(request, "recipient", &filter.recipient);
    filter.offset = query_number(request, "offset", 0);
    filter.limit = query_number(request, "limit", LINES_DEFAULT);
    uint64_t next = 0;
    struct buf out;
    buf_init(&out, ANSWER_MAX);
    if (ledger_write(control->sim->ledger, &filter, &out, &next) == 0) {
        char text[24];
        (void)snprintf(text, sizeof(text), "%" PRIu64, next);
        const struct http_header headers[] = {
            {.name = SPAN_LIT("content-type"), .value = SPAN_LIT("application/x-ndjson")},
            {.name = SPAN_LIT("x-next-offset"), .value = span_of(text)},
        };
        http_reply(request, 200, headers, next > 0 ? 2 : 1, buf_span(&out));
    } else {
        answer_problem(request, 500, "The list does not fit into memory; ask with limit=.");
    }
    buf_release(&out);
}

static bool read_file(const char *path, struct buf *out)
{
    FILE *file = fopen(path, "re");
    if (file == NULL) {
        return false;
    }
    bool good = true;
    for (;;) {
        char *room = NULL;
        if (buf_reserve(out, 65536, &room) != 0) {
            good = false;
            break;
        }
        size_t got = fread(room, 1, 65536, file);
        buf_commit(out, got);
        if (got == 0) {
            good = ferror(file) == 0;
            break;
        }
    }
    (void)fclose(file); /* only read */
    return good;
}

static int find_transaction(struct control *control, struct http_request *request,
                            enum sim_service *out_service, uint64_t *out_number)
{
    struct span text = {0};
    if (http_request_query(request, "transaction", &text)) {
        struct span service = {0};
        return http_request_query(request, "service", &service) &&
                       sim_service_find(service, out_service) == 0
                   ? span_to_u64(text, UINT64_MAX, out_number)
                   : ERR_INVAL;
    }
    if (http_request_query(request, "message_id", &text)) {
        return ledger_find(control->sim->ledger, text, query_number(request, "index", 0),
                           out_service, out_number);
    }
    return ERR_INVAL;
}

static void get_body(struct control *control, struct http_request *request)
{
    enum sim_service service = SIM_HVE;
    uint64_t number = 0;
    char path[1200];
    char transaction[40];
    if (control->sim->conf->keep_bodies == NULL) {
        answer_problem(request, 404, "Bodies are kept with --keep-bodies DIR only.");
        return;
    }
    if (find_transaction(control, request, &service, &number) != 0) {
        answer_problem(
            request, 404,
            "There is no such message; ask with service= and transaction=, or message_id=.");
        return;
    }
    struct buf out;
    buf_init(&out, STORED_MAX);
    sim_body_path(control->sim, service, number, path, sizeof(path));
    if (read_file(path, &out)) {
        (void)snprintf(transaction, sizeof(transaction), "%s-%" PRIu64, sim_service_name(service),
                       number);
        const struct http_header headers[] = {
            {.name = SPAN_LIT("content-type"), .value = SPAN_LIT("application/octet-stream")},
            {.name = SPAN_LIT("x-transaction"), .value = span_of(transaction)},
        };
        http_reply(request, 200, headers, 2, buf_span(&out));
    } else {
        answer_problem(request, 404, "The stored message cannot be read.");
    }
    buf_release(&out);
}

static void get_faults(struct control *control, struct http_request *request)
{
    json_t *json = json_pack("{s:o}", "faults", faults_json(control->sim->faults));
    char *text = json_dumps(json, JSON_COMPACT);
    ASSERT(text != NULL);
    answer(request, 200, "application/json", span_of(text));
    free(text);
    json_decref(json);
}

static void post_fault(struct control *control, struct http_request *request)
{
    struct err err;
    struct span body = buf_span(&request->body);
    json_t *json = json_loadb(body.data != NULL ? body.data : "", body.len, 0, NULL);
    if (json == NULL) {
        answer_problem(request, 400, "The body is not JSON.");
        return;
    }
    if (faults_add_json(control->sim->faults, json, &err) != 0) {
        answer_problem(request, 400, err.text);
    } else {
        get_faults(control, request);
    }
    json_decref(json);
}

static void delete_faults(struct control *control, struct http_request *request)
{
    faults_clear(control->sim->faults);
    get_faults(control, request);
}

static void post_reset(struct control *control, struct http_request *request)
{
    ledger_reset(control->sim->ledger);
    closures_reset(control->sim->closures);
    acs_reset(control->acs);
    graph_reset(control->graph);
    answer(request, 200, "application/json", SPAN_LIT("{\"reset\":true}\n"));
}

static void get_livez(struct control *control, struct http_request *request)
{
    (void)control;
    answer(request, 200, "text/plain", SPAN_LIT("alive\n"));
}

struct control_route {
    struct span method;
    const char *path;
    void (*run)(struct control *control, struct http_request *request);
};
static const struct control_route ROUTES[] = {
    {{"GET", 3}, "/summary", get_summary}, {{"GET", 3}, "/deliveries", get_deliveries},
    {{"GET", 3}, "/bodies", get_body},     {{"GET", 3}, "/fault", get_faults},
    {{"POST", 4}, "/fault", post_fault},   {{"DELETE", 6}, "/fault", delete_faults},
    {{"POST", 4}, "/reset", post_reset},   {{"GET", 3}, "/livez", get_livez},
};

static void on_request(void *ctx, struct http_request *request)
{
    struct control *control = ctx;
    for (size_t i = 0; i < sizeof(ROUTES) / sizeof(ROUTES[0]); i++) {
        if (span_eq(request->method, ROUTES[i].method) &&
            span_eq(request->path, span_of(ROUTES[i].path))) {
            ROUTES[i].run(control, request);
            return;
        }
    }
    answer_problem(request, 404, "There is no such request; see bench/sim/control.h.");
}

static size_t on_head(void *ctx, struct http_request *request)
{
    (void)ctx;
    (void)request;
    return BODY_MAX;
}

static const struct http_handler CONTROL_HANDLER = {.on_head = on_head, .on_request = on_request};

static int on_accept(void *ctx, uv_stream_t *socket)
{
    struct control *control = ctx;
    return http_server_accept(control->server, socket, NULL);
}

int control_open(struct sim *sim, struct acs *acs, struct graph *graph, struct control **out,
                 struct err *err)
{
    char bind_text[128];
    /* Loopback whatever --bind says: whoever reaches this port can make the simulators lie. */
    (void)snprintf(bind_text, sizeof(bind_text), "127.0.0.1:%" PRIu64,
                   sim->conf->ports[SIM_PORT_CONTROL]);
    struct control *control = mem_zero(sizeof(*control));
    *control = (struct control){.sim = sim, .acs = acs, .graph = graph};
    int result = listener_open(sim->loop, bind_text, on_accept, control, &control->listener, err);
    if (result != 0) {
        mem_free(control);
        return result;
    }
    control->server = http_server_new(sim->loop, &CONTROL_HANDLER, control, NULL);
    sim->ports[SIM_PORT_CONTROL] = listener_port(control->listener);
    *out = control;
    return 0;
}

void control_close(struct control **control)
{
    if (*control != NULL) {
        listener_close(&(*control)->listener);
        http_server_free(&(*control)->server);
        mem_free(*control);
        *control = NULL;
    }
}
