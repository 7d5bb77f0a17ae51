/* What becomes of a batch: every verdict class, ladders, expiry, lost answers (design.md section
 * 5). */
#include "gateway/settle.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define NOW 1000000
#define LATE 100000000

static const int64_t ladder[] = {5000, 15000, 60000};
static const struct lane_conf alert = {.name = "alert",
                                       .share_percent = 50,
                                       .ladder_ms = ladder,
                                       .ladder_count = 3,
                                       .last_repeats = true,
                                       .expires_ms = LATE,
                                       .retry_unknown = true};
static const struct lane_conf bulk = {.name = "bulk",
                                      .share_percent = 15,
                                      .ladder_ms = ladder,
                                      .ladder_count = 2,
                                      .last_repeats = false,
                                      .expires_ms = LATE,
                                      .retry_unknown = false};

struct fixture {
    struct recipient recipients[3];
    struct batch batch;
    struct answer answers[3];
    struct settle_result result;
};

static const size_t identity_map[] = {0, 1, 2};

static struct fixture make(void)
{
    return (struct fixture){0};
}

static void run(struct fixture *f, const struct lane_conf *lane, bool asks, enum verdict a,
                enum verdict b, enum verdict c)
{
    f->batch.recipients = f->recipients;
    f->batch.recipient_count = 3;
    enum verdict verdicts[] = {a, b, c};
    for (size_t i = 0; i < 3; i++) {
        f->answers[i].verdict = verdicts[i];
        (void)snprintf(f->answers[i].text, sizeof f->answers[i].text, "%s",
                       verdict_name(verdicts[i]));
    }
    struct settle_input input = {.lane = lane,
                                 .asks_when_unknown = asks,
                                 .now_ms = NOW,
                                 .expires_ms = LATE,
                                 .answers = f->answers,
                                 .map = identity_map,
                                 .count = 3,
                                 .account = "acc"};
    settle_decide(&f->batch, &input, &f->result);
}

static void test_all_delivered(void **state)
{
    (void)state;
    struct fixture f = make();
    run(&f, &alert, false, VERDICT_DELIVERED, VERDICT_DELIVERED, VERDICT_DELIVERED);
    assert_int_equal(f.result.settlement.next, QUEUE_NEXT_DONE);
    assert_int_equal(f.result.delivered, 3);
    assert_int_equal(f.batch.attempts, 1);
    assert_false(f.result.mixed);
    assert_true(span_eq(f.batch.account, SPAN_LIT("acc")));
    assert_int_equal(f.recipients[1].state, RECIPIENT_DELIVERED);
    assert_int_equal(f.recipients[1].at_ms, NOW);
}

static void test_permanent_answers_end_recipients(void **state)
{
    (void)state;
    struct fixture f = make();
    run(&f, &alert, false, VERDICT_DELIVERED, VERDICT_RECIPIENT_PERMANENT,
        VERDICT_MESSAGE_PERMANENT);
    assert_int_equal(f.result.settlement.next, QUEUE_NEXT_DONE);
    assert_int_equal(f.result.delivered, 1);
    assert_int_equal(f.result.failed, 2);
    assert_int_equal(f.recipients[2].state, RECIPIENT_FAILED);
    assert_true(span_eq(f.recipients[2].last_reply, SPAN_LIT("message-permanent")));
    assert_true(f.result.mixed);
}

static void test_a_transient_answer_climbs_the_ladder_for_the_rest_only(void **state)
{
    (void)state;
    struct fixture f = make();
    run(&f, &alert, false, VERDICT_DELIVERED, VERDICT_TRANSIENT, VERDICT_DELIVERED);
    assert_int_equal(f.result.settlement.next, QUEUE_NEXT_DELAY);
    assert_int_equal(f.result.settlement.due_ms, NOW + 5000);
    assert_int_equal(f.batch.attempts, 1);
    assert_int_equal(f.batch.epoch, 1);
    assert_int_equal(f.recipients[0].state, RECIPIENT_DELIVERED);
    assert_int_equal(f.recipients[1].state, RECIPIENT_QUEUED);
    assert_int_equal(f.result.deferred, 1);
}

static void test_the_ladder_repeats_or_ends(void **state)
{
    (void)state;
    assert_int_equal(settle_ladder_wait(&alert, 0), 5000);
    assert_int_equal(settle_ladder_wait(&alert, 2), 60000);
    assert_int_equal(settle_ladder_wait(&alert, 99), 60000);
    assert_int_equal(settle_ladder_wait(&bulk, 1), 15000);
    assert_int_equal(settle_ladder_wait(&bulk, 2), -1);
    struct fixture f = make();
    f.batch.attempts = 2;
    run(&f, &bulk, false, VERDICT_TRANSIENT, VERDICT_TRANSIENT, VERDICT_DELIVERED);
    assert_int_equal(f.result.settlement.next, QUEUE_NEXT_DONE);
    assert_int_equal(f.result.expired, 2);
    assert_int_equal(f.recipients[0].state, RECIPIENT_EXPIRED);
    assert_true(span_eq(f.recipients[0].last_reply, SPAN_LIT("transient")));
}

static void test_a_due_time_never_passes_the_expiry(void **state)
{
    (void)state;
    struct fixture f = make();
    f.batch.recipients = f.recipients;
    f.batch.recipient_count = 1;
    f.answers[0].verdict = VERDICT_TRANSIENT;
    struct settle_input input = {.lane = &alert,
                                 .now_ms = NOW,
                                 .expires_ms = NOW + 1000,
                                 .answers = f.answers,
                                 .map = identity_map,
                                 .count = 1,
                                 .account = ""};
    settle_decide(&f.batch, &input, &f.result);
    assert_int_equal(f.result.settlement.due_ms, NOW + 1000);
}

static void test_jitter_is_at_most_a_tenth(void **state)
{
    (void)state;
    for (uint32_t jitter = 0; jitter < 5000; jitter += 7) {
        struct fixture f = make();
        f.batch.recipients = f.recipients;
        f.batch.recipient_count = 1;
        f.answers[0].verdict = VERDICT_TRANSIENT;
        struct settle_input input = {.lane = &alert,
                                     .now_ms = NOW,
                                     .expires_ms = LATE,
                                     .answers = f.answers,
                                     .map = identity_map,
                                     .count = 1,
                                     .account = "",
                                     .jitter = jitter};
        settle_decide(&f.batch, &input, &f.result);
        assert_in_range(f.result.settlement.due_ms, NOW + 5000, NOW + 5500);
    }
}

static void test_throttling_uses_no_attempt_and_closes_its_scope(void **state)
{
    (void)state;
    struct fixture f = make();
    f.answers[0].scope = f.answers[1].scope = f.answers[2].scope = SCOPE_BACKEND;
    f.answers[0].wait_ms = f.answers[1].wait_ms = f.answers[2].wait_ms = 7000;
    run(&f, &alert, false, VERDICT_THROTTLED, VERDICT_THROTTLED, VERDICT_THROTTLED);
    assert_int_equal(f.result.settlement.next, QUEUE_NEXT_READY);
    assert_true(f.result.close_gate);
    assert_int_equal(f.result.gate_wait_ms, 7000);
    assert_int_equal(f.batch.attempts, 0);
    assert_int_equal(f.batch.epoch, 0);

    f = make();
    f.answers[0].scope = f.answers[1].scope = f.answers[2].scope = SCOPE_ACCOUNT;
    run(&f, &alert, false, VERDICT_THROTTLED, VERDICT_THROTTLED, VERDICT_THROTTLED);
    assert_int_equal(f.result.settlement.next, QUEUE_NEXT_READY);
    assert_false(f.result.close_gate);

    f = make();
    run(&f, &alert, false, VERDICT_THROTTLED, VERDICT_THROTTLED, VERDICT_THROTTLED);
    assert_int_equal(f.result.settlement.next, QUEUE_NEXT_DELAY);
    assert_true(f.result.settlement.due_ms > NOW);
}

static void test_a_wrong_setting_makes_the_batch_wait(void **state)
{
    (void)state;
    struct fixture f = make();
    run(&f, &alert, false, VERDICT_CONFIG, VERDICT_CONFIG, VERDICT_CONFIG);
    assert_int_equal(f.result.settlement.next, QUEUE_NEXT_DELAY);
    assert_int_equal(f.batch.attempts, 0);
    assert_int_equal(f.result.deferred, 3);
}

static void test_a_blocked_account_gives_the_batch_back(void **state)
{
    (void)state;
    struct fixture f = make();
    run(&f, &alert, false, VERDICT_ACCOUNT_BLOCKED, VERDICT_ACCOUNT_BLOCKED,
        VERDICT_ACCOUNT_BLOCKED);
    assert_int_equal(f.result.settlement.next, QUEUE_NEXT_READY);
    assert_int_equal(f.batch.attempts, 0);
}

static void test_a_lost_answer_follows_the_lane(void **state)
{
    (void)state;
    struct fixture f = make();
    run(&f, &alert, false, VERDICT_UNKNOWN, VERDICT_UNKNOWN, VERDICT_UNKNOWN);
    assert_int_equal(f.result.settlement.next, QUEUE_NEXT_DELAY);
    assert_int_equal(f.batch.flags, BATCH_MAYBE_SENT);
    assert_int_equal(f.batch.epoch, 0);
    assert_int_equal(f.batch.attempts, 1);

    f = make();
    run(&f, &bulk, false, VERDICT_UNKNOWN, VERDICT_UNKNOWN, VERDICT_RECIPIENT_PERMANENT);
    assert_int_equal(f.result.settlement.next, QUEUE_NEXT_HOLD);
    assert_int_equal(f.recipients[0].state, RECIPIENT_UNKNOWN);
    assert_int_equal(f.recipients[2].state, RECIPIENT_FAILED);
    assert_true(f.result.settlement.reason.len > 0);
    assert_int_equal(f.result.unknown, 2);

    f = make(); /* a service that can be asked is asked, whatever the lane says */
    run(&f, &bulk, true, VERDICT_UNKNOWN, VERDICT_UNKNOWN, VERDICT_UNKNOWN);
    assert_int_equal(f.result.settlement.next, QUEUE_NEXT_DELAY);
}

static void test_the_operation_keeps_its_name_after_a_lost_answer(void **state)
{
    (void)state;
    struct fixture f = make();
    f.batch.flags = BATCH_MAYBE_SENT;
    f.batch.epoch = 3;
    run(&f, &alert, true, VERDICT_TRANSIENT, VERDICT_TRANSIENT, VERDICT_TRANSIENT);
    assert_int_equal(f.batch.epoch, 3);
}

static void test_a_started_batch_of_a_dead_owner(void **state)
{
    (void)state;
    struct fixture f = make();
    f.batch.recipients = f.recipients;
    f.batch.recipient_count = 3;
    assert_true(settle_recovered(&f.batch, &alert, false, NOW, &f.result));
    assert_int_equal(f.batch.flags, BATCH_MAYBE_SENT);
    f = make();
    f.batch.recipients = f.recipients;
    f.batch.recipient_count = 3;
    assert_true(settle_recovered(&f.batch, &bulk, true, NOW, &f.result));
    f = make();
    f.batch.recipients = f.recipients;
    f.batch.recipient_count = 3;
    f.recipients[0].state = RECIPIENT_DELIVERED;
    assert_false(settle_recovered(&f.batch, &bulk, false, NOW, &f.result));
    assert_int_equal(f.result.settlement.next, QUEUE_NEXT_HOLD);
    assert_int_equal(f.result.unknown, 2);
    assert_int_equal(f.recipients[0].state, RECIPIENT_DELIVERED);
}

static void test_expiry_tells_unknown_from_expired(void **state)
{
    (void)state;
    struct fixture f = make();
    f.batch.recipients = f.recipients;
    f.batch.recipient_count = 3;
    f.recipients[1].state = RECIPIENT_FAILED;
    settle_expire(&f.batch, NOW, &f.result);
    assert_int_equal(f.result.expired, 2);
    assert_int_equal(f.recipients[0].state, RECIPIENT_EXPIRED);
    assert_int_equal(f.recipients[1].state, RECIPIENT_FAILED);
    assert_int_equal(f.result.settlement.next, QUEUE_NEXT_DONE);
    f = make();
    f.batch.recipients = f.recipients;
    f.batch.recipient_count = 1;
    f.batch.flags = BATCH_MAYBE_SENT;
    settle_expire(&f.batch, NOW, &f.result);
    assert_int_equal(f.recipients[0].state, RECIPIENT_UNKNOWN);
}

/* The backend takes fewer recipients at a time than the batch has: the others go on untouched. */
static void run_first(struct fixture *f, const struct lane_conf *lane, enum verdict verdict)
{
    f->batch.recipients = f->recipients;
    f->batch.recipient_count = 3;
    f->answers[0].verdict = verdict;
    struct settle_input input = {.lane = lane,
                                 .now_ms = NOW,
                                 .expires_ms = LATE,
                                 .answers = f->answers,
                                 .map = identity_map,
                                 .count = 1,
                                 .account = ""};
    settle_decide(&f->batch, &input, &f->result);
}

static void test_recipients_that_were_not_tried_go_on(void **state)
{
    (void)state;
    struct fixture f = make();
    f.batch.flags = BATCH_MAYBE_SENT;
    f.batch.attempts = 1;
    run_first(&f, &alert, VERDICT_DELIVERED);
    assert_int_equal(f.result.settlement.next, QUEUE_NEXT_READY);
    assert_int_equal(f.result.delivered, 1);
    assert_int_equal(f.recipients[0].state, RECIPIENT_DELIVERED);
    assert_int_equal(f.recipients[1].state, RECIPIENT_QUEUED);
    assert_int_equal(f.batch.flags, 0);
    assert_int_equal(f.batch.attempts, 0);
    assert_int_equal(f.batch.epoch, 1);

    f = make();
    f.batch.attempts = 2; /* the ladder ends for the one that was tried */
    run_first(&f, &bulk, VERDICT_TRANSIENT);
    assert_int_equal(f.result.settlement.next, QUEUE_NEXT_READY);
    assert_int_equal(f.result.expired, 1);
    assert_int_equal(f.result.deferred, 0);
    assert_int_equal(f.recipients[0].state, RECIPIENT_EXPIRED);
    assert_int_equal(f.recipients[2].state, RECIPIENT_QUEUED);

    f = make();
    run_first(&f, &bulk, VERDICT_UNKNOWN);
    assert_int_equal(f.result.settlement.next, QUEUE_NEXT_HOLD);
    assert_int_equal(f.result.unknown, 1);
    assert_int_equal(f.result.deferred, 0);
    assert_int_equal(f.recipients[1].state, RECIPIENT_QUEUED);
}

static void test_a_throttled_backend_is_closed_whatever_others_got(void **state)
{
    (void)state;
    struct fixture f = make();
    f.answers[1].scope = SCOPE_BACKEND;
    f.answers[1].wait_ms = 9000;
    run(&f, &alert, false, VERDICT_TRANSIENT, VERDICT_THROTTLED, VERDICT_DELIVERED);
    assert_int_equal(f.result.settlement.next, QUEUE_NEXT_DELAY);
    assert_true(f.result.close_gate);
    assert_int_equal(f.result.gate_wait_ms, 9000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_delivered),
        cmocka_unit_test(test_permanent_answers_end_recipients),
        cmocka_unit_test(test_a_transient_answer_climbs_the_ladder_for_the_rest_only),
        cmocka_unit_test(test_the_ladder_repeats_or_ends),
        cmocka_unit_test(test_a_due_time_never_passes_the_expiry),
        cmocka_unit_test(test_jitter_is_at_most_a_tenth),
        cmocka_unit_test(test_throttling_uses_no_attempt_and_closes_its_scope),
        cmocka_unit_test(test_a_wrong_setting_makes_the_batch_wait),
        cmocka_unit_test(test_a_blocked_account_gives_the_batch_back),
        cmocka_unit_test(test_a_lost_answer_follows_the_lane),
        cmocka_unit_test(test_the_operation_keeps_its_name_after_a_lost_answer),
        cmocka_unit_test(test_a_started_batch_of_a_dead_owner),
        cmocka_unit_test(test_expiry_tells_unknown_from_expired),
        cmocka_unit_test(test_recipients_that_were_not_tried_go_on),
        cmocka_unit_test(test_a_throttled_backend_is_closed_whatever_others_got),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
