/* Which lanes are accepted at which levels; and the watch of a real queue. */
#include "gateway/admission.h"

#include "gateway/base/log.h"
#include "tests/unit/queue_harness.h"

static const struct admission_lane lanes[] = {
    {.name = "alert", .admit_percent = 100},
    {.name = "normal", .admit_percent = 95},
    {.name = "bulk", .admit_percent = 80, .max_age_ms = 60000},
};
static const struct admission_conf limits = {
    .lanes = lanes,
    .lane_count = 3,
    .max_bytes = 1000,
    .max_messages = 200,
    .max_memory_percent = 90,
};

/* The verdicts of the lanes in order: "." open, or the reason's first two letters. */
static void verdicts(const struct admission_levels *levels, const bool was_open[3], char out[16])
{
    out[0] = '\0';
    for (size_t i = 0; i < 3; i++) {
        enum admission_reason reason = admission_decide(&limits, &lanes[i], levels, was_open[i]);
        const char *name = reason == ADMISSION_OPEN ? "." : admission_reason_name(reason);
        (void)snprintf(out + strlen(out), 16 - strlen(out), "%.2s ", name);
    }
}

static void test_order_of_lanes(void **state)
{
    (void)state;
    static const struct {
        struct admission_levels levels;
        const char *verdicts;
    } rows[] = {
        {{0}, ". . . "},
        {{.bytes = 775}, ". . . "}, /* 97 % of 80 % are 776 */
        {{.bytes = 776}, ". . by "},
        {{.bytes = 921}, ". . by "},
        {{.bytes = 922}, ". by by "},
        {{.bytes = 969}, ". by by "},
        {{.bytes = 970}, "by by by "},
        {{.messages = 159}, ". . . "},
        {{.messages = 160}, ". . me "},
        {{.messages = 200}, "me me me "},
        {{.memory_permille = 719}, ". . . "}, /* 80 % of 90 % */
        {{.memory_permille = 720}, ". . me "},
        {{.memory_permille = 855}, ". me me "},
        {{.memory_permille = 900}, "me me me "},
        {{.oldest_ms = 60000}, ". . . "},
        {{.oldest_ms = 60001}, ". . ag "}, /* the others have no limit */
    };
    static const bool open[3] = {true, true, true};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char got[16];
        verdicts(&rows[i].levels, open, got);
        assert_string_equal(got, rows[i].verdicts);
    }
}

/* A closed lane opens a tenth (an age: a fifth) below where it closed. */
static void test_hysteresis(void **state)
{
    (void)state;
    static const struct {
        struct admission_levels levels;
        const char *verdicts;
    } rows[] = {
        {{.bytes = 900}, "by by by "},        {{.bytes = 899}, ". by by "},
        {{.bytes = 854}, ". . by "},          {{.bytes = 720}, ". . by "},
        {{.bytes = 719}, ". . . "},           {{.messages = 144}, ". . me "},
        {{.messages = 143}, ". . . "},        {{.memory_permille = 648}, ". . me "},
        {{.memory_permille = 647}, ". . . "}, {{.oldest_ms = 48001}, ". . ag "},
        {{.oldest_ms = 48000}, ". . . "},
    };
    static const bool closed[3] = {false, false, false};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char got[16];
        verdicts(&rows[i].levels, closed, got);
        assert_string_equal(got, rows[i].verdicts);
    }
}

static void test_without_limits(void **state)
{
    (void)state;
    struct admission_conf none = {.lanes = lanes, .lane_count = 3};
    struct admission_levels levels = {
        .bytes = UINT64_MAX, .messages = UINT64_MAX, .memory_permille = 1000};
    assert_int_equal(admission_decide(&none, &lanes[2], &levels, true), ADMISSION_OPEN);
    assert_int_equal(admission_of(NULL, SPAN_LIT("bulk")), ADMISSION_OPEN);
    assert_int_equal(admission_of_all(NULL), ADMISSION_OPEN);
}

struct world {
    struct rig rig;
    struct handle handle;
    struct events *events;
    struct admission *admission;
    struct loop_timer poll;
};

static int setup(void **state)
{
    struct world *world = mem_zero(sizeof *world);
    log_configure(LOG_ERROR, LOG_FORM_TEXT, false);
    rig_init(&world->rig);
    rig_start_server(&world->rig);
    handle_open(&world->rig, &world->handle, &world->rig.conf);
    world->events = events_new();
    *state = world;
    return 0;
}

static int teardown(void **state)
{
    struct world *world = *state;
    loop_timer_stop(&world->poll);
    admission_unwatch(world->admission);
    handle_close(&world->handle);
    admission_free(&world->admission);
    events_free(&world->events);
    rig_release(&world->rig);
    mem_free(world);
    return 0;
}

static void poll_again(void *ctx)
{
    struct world *world = ctx;
    loop_stop(world->rig.loop);
    loop_timer_start(world->rig.loop, &world->poll, 20, poll_again, world);
}

/* A message fills the queue to nine tenths of the number allowed: bulk is closed, alert open. It
 * leaves, and bulk opens. */
static void test_watch(void **state)
{
    struct world *world = *state;
    static const struct admission_conf few = {.lanes = lanes, .lane_count = 3, .max_messages = 4};
    static struct draft drafts[4];
    static struct claimed claimed;
    world->admission = admission_new(&few, world->events);
    admission_watch(world->admission, world->rig.loop, world->handle.queue);
    poll_again(world);
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(admission_of(world->admission, SPAN_LIT("alert")), ADMISSION_OPEN);
        draft_fill(&drafts[i], world->handle.queue, "erp", "bulk", 1, 1);
        assert_int_equal(enqueue_wait(&world->handle, &drafts[i].message, 0, NULL, NULL), 0);
    }
    RIG_WAIT(&world->rig, admission_of(world->admission, SPAN_LIT("alert")) == ADMISSION_MESSAGES);
    assert_int_equal(admission_of(world->admission, SPAN_LIT("bulk")), ADMISSION_MESSAGES);
    assert_int_equal(admission_of_all(world->admission), ADMISSION_MESSAGES);
    assert_int_equal(admission_of(world->admission, SPAN_LIT("another")), ADMISSION_OPEN);
    claim_wait(&world->handle, "bulk", "hve", 4, &claimed);
    assert_int_equal(claimed.count, 4);
    lease_finish(claimed.leases[0], RECIPIENT_DELIVERED);
    assert_int_equal(settle_wait(&world->handle, &claimed.leases[0], QUEUE_NEXT_DONE, 0), 0);
    RIG_WAIT(&world->rig, admission_of(world->admission, SPAN_LIT("alert")) == ADMISSION_OPEN);
    assert_int_equal(admission_of(world->admission, SPAN_LIT("bulk")), ADMISSION_MESSAGES);
    lease_finish(claimed.leases[1], RECIPIENT_DELIVERED);
    assert_int_equal(settle_wait(&world->handle, &claimed.leases[1], QUEUE_NEXT_DONE, 0), 0);
    RIG_WAIT(&world->rig, admission_of(world->admission, SPAN_LIT("bulk")) == ADMISSION_OPEN);
    queue_lease_free(&claimed.leases[2]);
    queue_lease_free(&claimed.leases[3]);
}

/* A lane that is behind is put off until what waits has left. */
static void test_watch_age(void **state)
{
    struct world *world = *state;
    static const struct admission_lane young[] = {
        {.name = "bulk", .admit_percent = 100, .max_age_ms = 500}};
    static const struct admission_conf conf = {.lanes = young, .lane_count = 1};
    static struct draft draft;
    static struct claimed claimed;
    world->admission = admission_new(&conf, world->events);
    admission_watch(world->admission, world->rig.loop, world->handle.queue);
    poll_again(world);
    draft_fill(&draft, world->handle.queue, "erp", "bulk", 1, 1);
    assert_int_equal(enqueue_wait(&world->handle, &draft.message, 0, NULL, NULL), 0);
    RIG_WAIT(&world->rig, admission_of(world->admission, SPAN_LIT("bulk")) == ADMISSION_AGE);
    claim_wait(&world->handle, "bulk", "hve", 1, &claimed);
    assert_int_equal(claimed.count, 1);
    RIG_WAIT(&world->rig, admission_of(world->admission, SPAN_LIT("bulk")) == ADMISSION_OPEN);
    queue_lease_free(&claimed.leases[0]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order_of_lanes),
        cmocka_unit_test(test_hysteresis),
        cmocka_unit_test(test_without_limits),
        cmocka_unit_test_setup_teardown(test_watch, setup, teardown),
        cmocka_unit_test_setup_teardown(test_watch_age, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
