/* What the unit tests of the ACS and Graph backends share: a scripted service, a delivery and its
 * answers. */
#ifndef HEAVE_TESTS_LIB_REST_FIXTURE_H
#define HEAVE_TESTS_LIB_REST_FIXTURE_H

#include "backends/backend.h"
#include "backends/verdicts.h"
#include "tests/lib/https_server.h"

/* What the service does with the n-th request; the last one stays. */
struct step {
    enum https_action action;
    int status;
    const char *headers;
    const char *body;
};

struct fixture {
    struct loop *loop;
    struct https_server server;
    struct backend_conf conf;
    struct backend *backend;
    char endpoint[100];
    const struct step *steps;
    size_t step_count;
    size_t request_count;
    char targets[32][200];
    char heads[32][1000];
    char *bodies[32];
    char health[100];
    bool closed;
};

struct sent {
    struct delivery delivery;
    struct answer answers[50];
    char account[100];
    int start_result;
    size_t starts;
    bool done;
};

static int sent_on_start(struct delivery *delivery)
{
    struct sent *sent = delivery->ctx;
    sent->starts++;
    return sent->start_result;
}

static void sent_on_done(struct delivery *delivery, const struct answer *answers,
                         const char *account)
{
    struct sent *sent = delivery->ctx;
    assert_false(sent->done);
    memcpy(sent->answers, answers, delivery->recipient_count * sizeof(*answers));
    snprintf(sent->account, sizeof(sent->account), "%s", account);
    sent->done = true;
}

static struct span recipient_list[50];
static char recipient_text[50][32];

static void sent_prepare(struct sent *sent, size_t count, struct span body)
{
    for (size_t i = 0; i < 50; i++) {
        snprintf(recipient_text[i], sizeof(recipient_text[i]), "r%zu@example.com", i);
        recipient_list[i] = span_of(recipient_text[i]);
    }
    *sent = (struct sent){.delivery = {.message_id = SPAN_LIT("01ABC"),
                                       .batch_number = 3,
                                       .recipients = recipient_list,
                                       .recipient_count = count,
                                       .body = body,
                                       .on_start = sent_on_start,
                                       .on_done = sent_on_done}};
    sent->delivery.ctx = sent;
}

static void sent_run(struct fixture *f, struct sent *sent)
{
    assert_int_equal(backend_deliver(f->backend, &sent->delivery), 0);
    assert_false(sent->done);
    https_run_until(f->loop, &sent->done);
}

static void fixture_handle(void *ctx, const struct https_request *request, bool early,
                           struct https_reply *reply)
{
    struct fixture *f = ctx;
    if (early) {
        return;
    }
    size_t index = f->request_count;
    assert_true(index < 32);
    snprintf(f->targets[index], sizeof(f->targets[index]), "%.*s", SPAN_FMT(request->target));
    snprintf(f->heads[index], sizeof(f->heads[index]), "%.*s", SPAN_FMT(request->head));
    f->bodies[index] = mem_dup(request->body);
    f->request_count++;
    const struct step *step = &f->steps[index < f->step_count ? index : f->step_count - 1];
    reply->action = step->action;
    reply->status = step->status;
    snprintf(reply->headers, sizeof(reply->headers), "%s",
             step->headers != NULL ? step->headers : "");
    reply->body = step->body;
}

static void fixture_on_health(void *ctx, const char *backend, const char *account, const char *what,
                              const char *text, const char *remedy)
{
    struct fixture *f = ctx;
    (void)backend;
    (void)text;
    (void)remedy;
    snprintf(f->health, sizeof(f->health), "%s %s", what, account);
}

static void fixture_init(struct fixture *f, const struct step *steps, size_t step_count)
{
    *f = (struct fixture){.steps = steps, .step_count = step_count};
    f->loop = loop_new("test");
    https_server_start(&f->server, f->loop);
    f->server.handle = fixture_handle;
    f->server.ctx = f;
    snprintf(f->endpoint, sizeof(f->endpoint), "https://127.0.0.1:%u", f->server.port);
    f->conf = (struct backend_conf){.name = "rest",
                                    .endpoint = f->endpoint,
                                    .ca_file = f->server.ca_file,
                                    .recipients_per_message = 50,
                                    .concurrency = 4,
                                    .connect_timeout_ms = 5000,
                                    .reply_timeout_ms = 5000};
}

static void fixture_open(struct fixture *f, mail_read_fn read_mail)
{
    struct err err = {.code = 0};
    const struct backend_env env = {
        .loop = f->loop, .read_mail = read_mail, .on_health = fixture_on_health, .ctx = f};
    if (backend_open(&env, &f->conf, &f->backend, &err) != 0) {
        fail_msg("%s", err.text);
    }
}

static void fixture_on_closed(void *ctx)
{
    *(bool *)ctx = true;
}

static void fixture_release(struct fixture *f)
{
    if (f->backend != NULL) {
        backend_close(&f->backend, 0, fixture_on_closed, &f->closed);
        https_run_until(f->loop, &f->closed);
    }
    for (size_t i = 0; i < f->request_count; i++) {
        mem_free(f->bodies[i]);
    }
    https_server_release(&f->server);
    loop_free(&f->loop);
}

/* Every row of these kinds is what its own example finds (verdicts.h). */
static void check_rows(unsigned kinds)
{
    size_t count = 0;
    for (size_t i = 0; i < verdict_http_row_count; i++) {
        const struct verdict_http_row *row = &verdict_http_rows[i];
        for (unsigned kind = 1; kind <= KIND_TOKEN; kind <<= 1) {
            if ((row->kinds & kinds & kind) == 0) {
                continue;
            }
            struct span text = span_of(row->example);
            struct span status = span_cut(&text, ' ');
            struct span code = span_cut(&text, ' ');
            uint64_t number = 0;
            assert_int_equal(span_to_u64(status, 599, &number), 0);
            code = span_eq(code, SPAN_LIT("-")) ? SPAN_LIT("") : code;
            if (verdict_http_find((enum verdict_http_kind)kind, (uint32_t)number, code, text) !=
                row) {
                fail_msg("row %zu is not what its example finds: %s", i, row->example);
            }
            assert_non_null(row->source);
            bool needs_remedy = row->verdict == VERDICT_CONFIG ||
                                row->verdict == VERDICT_ACCOUNT_BLOCKED;
            assert_true(!needs_remedy || row->remedy != NULL);
            count++;
        }
    }
    assert_true(count > 5);
}

#endif
