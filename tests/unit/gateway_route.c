/* The split: normalising, de-duplication, rules, even cuts (design.md section 6). */
#include "gateway/route.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static const char *const accepted[] = {"contoso.test", "*.corp.contoso.test"};
static const uint32_t via_internal[] = {0, 2};
static const uint32_t via_external[] = {1, 2};
static const struct route_rule rules[] = {
    {.recipient = ROUTE_INTERNAL, .via = via_internal, .via_count = 2},
    {.recipient = ROUTE_EXTERNAL, .via = via_external, .via_count = 2},
};
static const struct route_backend backends[] = {
    {.name = "hve", .recipients_per_message = 50, .message_bytes = 1000, .internal_only = true},
    {.name = "acs", .recipients_per_message = 49, .needs_7bit_envelope = true},
    {.name = "graph", .recipients_per_message = 50, .message_bytes = 2000},
};
static const struct route_conf conf = {
    .accepted_domains = accepted,
    .accepted_count = 2,
    .rules = rules,
    .rule_count = 2,
    .backends = backends,
    .backend_count = 3,
};

struct fixture {
    struct arena arena;
    struct span list[400];
    size_t count;
    size_t message_bytes;
    struct route_plan plan;
};

static void add(struct fixture *f, const char *local, size_t number, const char *domain)
{
    char text[100];
    (void)snprintf(text, sizeof text, "%s%zu@%s", local, number, domain);
    f->list[f->count++] = arena_dup(&f->arena, span_of(text));
}

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    arena_init(&f->arena, 10 * 1024 * 1024);
    f->message_bytes = 100;
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    arena_release(&f->arena);
    free(f);
    return 0;
}

static void plan(struct fixture *f)
{
    struct route_request request = {
        .lane = SPAN_LIT("normal"),
        .client = SPAN_LIT("erp"),
        .sender = SPAN_LIT("a@contoso.test"),
        .message_bytes = f->message_bytes,
        .recipients = f->list,
        .recipient_count = f->count,
    };
    assert_int_equal(route_plan(&conf, &request, &f->arena, &f->plan), ERR_OK);
}

static void test_the_acceptance_message(void **state)
{
    struct fixture *f = *state;
    for (size_t i = 0; i < 120; i++) {
        add(f, "user", i, "contoso.test");
    }
    for (size_t i = 0; i < 80; i++) {
        add(f, "user", i, "example.net");
    }
    add(f, "USER", 7, "CONTOSO.TEST");
    add(f, "User", 9, "Example.Net");
    add(f, "user", 119, "contoso.test");
    plan(f);
    assert_int_equal(f->plan.recipient_count, 200);
    assert_int_equal(f->plan.batch_count, 5);
    size_t hve = 0;
    size_t acs = 0;
    for (size_t i = 0; i < f->plan.batch_count; i++) {
        assert_true(f->plan.batches[i].recipient_count <= 50);
        hve += f->plan.batches[i].backend == 0;
        acs += f->plan.batches[i].backend == 1;
        assert_int_equal(f->plan.batches[i].recipient_count, 40);
    }
    assert_int_equal(hve, 3);
    assert_int_equal(acs, 2);
}

static void test_every_recipient_is_in_one_batch(void **state)
{
    struct fixture *f = *state;
    for (size_t i = 0; i < 399; i++) {
        add(f, "r", i, i % 3 == 0 ? "contoso.test" : "example.org");
    }
    plan(f);
    size_t seen = 0;
    for (size_t b = 0; b < f->plan.batch_count; b++) {
        for (size_t r = 0; r < f->plan.batches[b].recipient_count; r++) {
            for (size_t i = 0; i < f->count; i++) {
                seen += span_eq(f->plan.batches[b].recipients[r], f->list[i]);
            }
        }
    }
    assert_int_equal(seen, 399);
    assert_int_equal(f->plan.recipient_count, 399);
}

static void test_a_large_internal_message_takes_the_next_backend(void **state)
{
    struct fixture *f = *state;
    f->message_bytes = 1500;
    add(f, "a", 1, "contoso.test");
    plan(f);
    assert_int_equal(f->plan.batch_count, 1);
    assert_int_equal(f->plan.batches[0].backend, 2);
}

static void test_too_large_for_every_backend_is_refused(void **state)
{
    struct fixture *f = *state;
    f->message_bytes = 2500;
    add(f, "a", 1, "contoso.test");
    add(f, "a", 1, "example.org");
    plan(f);
    assert_int_equal(f->plan.batch_count, 1);
    assert_int_equal(f->plan.batches[0].backend, 1);
    assert_int_equal(f->plan.refused_count, 1);
    assert_non_null(strstr(f->plan.refused[0].reason, "larger"));
}

static void test_subdomains_only_where_listed(void **state)
{
    (void)state;
    assert_true(route_is_internal(&conf, SPAN_LIT("a@Contoso.TEST")));
    assert_true(route_is_internal(&conf, SPAN_LIT("a@x.corp.contoso.test")));
    assert_false(route_is_internal(&conf, SPAN_LIT("a@corp.contoso.test")));
    assert_false(route_is_internal(&conf, SPAN_LIT("a@x.contoso.test")));
    assert_false(route_is_internal(&conf, SPAN_LIT("a@notcontoso.test")));
    assert_false(route_is_internal(&conf, SPAN_LIT("a")));
}

static void test_domains_become_lower_case_a_labels(void **state)
{
    struct fixture *f = *state;
    struct span out;
    assert_int_equal(route_normalise(SPAN_LIT("Jos\xc3\xa9@B\xc3\xbc"
                                              "cher.EXAMPLE"),
                                     &f->arena, &out),
                     ERR_OK);
    assert_true(span_eq(out, SPAN_LIT("Jos\xc3\xa9@xn--bcher-kva.example")));
    assert_int_equal(route_normalise(SPAN_LIT("A.B@EXAMPLE.org"), &f->arena, &out), ERR_OK);
    assert_true(span_eq(out, SPAN_LIT("A.B@example.org")));
    assert_int_equal(route_normalise(SPAN_LIT("nodomain"), &f->arena, &out), ERR_INVAL);
    assert_int_equal(route_normalise(SPAN_LIT("a@\xff\xfe"), &f->arena, &out), ERR_INVAL);
}

static void test_non_ascii_addresses_avoid_backends_that_cannot(void **state)
{
    struct fixture *f = *state;
    f->list[f->count++] = SPAN_LIT("jos\xc3\xa9@example.org");
    plan(f);
    assert_int_equal(f->plan.batch_count, 1);
    assert_int_equal(f->plan.batches[0].backend, 2);
}

static void test_sender_patterns(void **state)
{
    (void)state;
    assert_true(route_sender_matches(SPAN_LIT("*"), SPAN_LIT("a@b.c")));
    assert_true(route_sender_matches(SPAN_LIT("*@Contoso.test"), SPAN_LIT("a@contoso.TEST")));
    assert_false(route_sender_matches(SPAN_LIT("*@contoso.test"), SPAN_LIT("a@evil.contoso.test")));
    assert_true(route_sender_matches(SPAN_LIT("*@*.contoso.test"), SPAN_LIT("a@x.contoso.test")));
    assert_true(route_sender_matches(SPAN_LIT("Scan@contoso.test"), SPAN_LIT("scan@CONTOSO.test")));
    assert_false(
        route_sender_matches(SPAN_LIT("scan@contoso.test"), SPAN_LIT("scanx@contoso.test")));
}

static void test_rules_by_lane_client_sender_and_domain(void **state)
{
    struct fixture *f = *state;
    static const char *const domains[] = {"*.partner.example"};
    static const uint32_t to_graph[] = {2};
    static const uint32_t to_acs[] = {1};
    const struct route_rule special[] = {
        {.domains = domains, .domain_count = 1, .via = to_graph, .via_count = 1},
        {.lane = "alert",
         .client = "zabbix",
         .sender = "*@contoso.test",
         .via = to_graph,
         .via_count = 1},
        {.via = to_acs, .via_count = 1},
    };
    struct route_conf own = conf;
    own.rules = special;
    own.rule_count = 3;
    struct route_request request = {.lane = SPAN_LIT("alert"),
                                    .client = SPAN_LIT("zabbix"),
                                    .sender = SPAN_LIT("z@contoso.test")};
    struct span one = SPAN_LIT("a@x.partner.example");
    request.recipients = &one;
    request.recipient_count = 1;
    assert_int_equal(route_plan(&own, &request, &f->arena, &f->plan), ERR_OK);
    assert_int_equal(f->plan.batches[0].backend, 2);
    one = SPAN_LIT("a@example.org");
    assert_int_equal(route_plan(&own, &request, &f->arena, &f->plan), ERR_OK);
    assert_int_equal(f->plan.batches[0].backend, 2);
    request.client = SPAN_LIT("erp");
    assert_int_equal(route_plan(&own, &request, &f->arena, &f->plan), ERR_OK);
    assert_int_equal(f->plan.batches[0].backend, 1);
}

static void test_no_rule_refuses(void **state)
{
    struct fixture *f = *state;
    struct route_conf own = conf;
    own.rule_count = 1;
    struct route_request request = {.lane = SPAN_LIT("normal")};
    assert_non_null(route_objection(&own, &request, SPAN_LIT("a@example.org")));
    assert_null(route_objection(&own, &request, SPAN_LIT("a@contoso.test")));
    f->count = 0;
    plan(f);
    assert_int_equal(f->plan.batch_count, 0);
}

static void test_an_arena_too_small_is_an_error(void **state)
{
    (void)state;
    struct arena small;
    arena_init(&small, 256);
    struct span list[20];
    for (size_t i = 0; i < 20; i++) {
        list[i] = SPAN_LIT("somebody@example.org");
    }
    struct route_request request = {.recipients = list, .recipient_count = 20};
    struct route_plan out;
    assert_int_equal(route_plan(&conf, &request, &small, &out), ERR_NOMEM);
    arena_release(&small);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_the_acceptance_message, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_every_recipient_is_in_one_batch, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_large_internal_message_takes_the_next_backend,
                                        set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_too_large_for_every_backend_is_refused, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_subdomains_only_where_listed, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_domains_become_lower_case_a_labels, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_non_ascii_addresses_avoid_backends_that_cannot, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_sender_patterns, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_rules_by_lane_client_sender_and_domain, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_no_rule_refuses, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_an_arena_too_small_is_an_error, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
