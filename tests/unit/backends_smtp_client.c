/* Unit tests of backends/smtp_client: transactions, with PIPELINING and step by step. */
#include "backends/smtp_client.h"

#include "tests/lib/smtp_rig.h"

/* ---- Pipelined transactions ---- */

static const char *const two_in_a_row[] = {
    HELLO,
    "G 0",
    "C MAIL FROM:<s@x.org> SIZE=12",
    "C RCPT TO:<r1@x.org>",
    "C DATA",
    "G 1", /* waits: DATA ends a group */
    "S 250 2.1.0 ok",
    "S 250 2.1.5 ok",
    "S 354 go",
    /* One group: the content of the first and the envelope of the second. */
    "C A: 1",
    "C ",
    "C hi",
    "C .",
    "C MAIL FROM:<s@x.org> SIZE=14",
    "C RCPT TO:<r1@x.org>",
    "C RCPT TO:<r2@x.org>",
    "C RCPT TO:<r3@x.org>",
    "C DATA",
    "S 250 2.0.0 first",
    "S 250 ok",
    "S 250 ok",
    "S 550 5.1.1 nobody",
    "S 250 ok",
    "S 354 go",
    "C A: 2",
    "C ",
    "C ..dot",
    "C .",
    "G 2", /* right behind the dot, which is not answered yet */
    "C MAIL FROM:<> SIZE=6",
    "C RCPT TO:<r1@x.org>",
    "C DATA",
    "S 250 2.0.0 second",
    "S 250 ok",
    "S 250 ok",
    "S 354 go",
    "C A: 3",
    "C .",
    "S 250 2.0.0 third",
    "Q",
    "C QUIT",
    "S 221 bye",
    NULL,
};

static void check_two_in_a_row(struct rig *rig)
{
    assert_int_equal(rig->ready, 1);
    assert_verdict(&rig->mails[0], 0, VERDICT_DELIVERED);
    assert_string_equal(rig->mails[0].answers[0].text, "250 2.0.0 first");
    assert_int_equal(rig->mails[0].answers[0].code, 250);
    assert_verdict(&rig->mails[1], 0, VERDICT_DELIVERED);
    assert_verdict(&rig->mails[1], 1, VERDICT_RECIPIENT_PERMANENT);
    assert_string_equal(rig->mails[1].answers[1].text, "550 5.1.1 nobody");
    assert_verdict(&rig->mails[1], 2, VERDICT_DELIVERED);
    assert_verdict(&rig->mails[2], 0, VERDICT_DELIVERED);
    assert_int_equal(rig->mails[1].starts, 1);
    assert_int_equal(rig->ended, 1);
    assert_int_equal(smtp_client_reason(rig->client)->verdict, VERDICT_DELIVERED);
}

static void pipelined_transactions_share_a_group(void **state)
{
    (void)state;
    transcript(two_in_a_row, NULL, check_two_in_a_row);
}

/* The number of server bytes at which `line` begins. */
static size_t bytes_before(const char *const *lines, size_t line)
{
    size_t bytes = 0;
    for (size_t i = 0; i < line; i++) {
        bytes += lines[i][0] == 'S' ? strlen(lines[i] + 2) + 2 : 0;
    }
    return bytes;
}

static size_t line_of(const char *const *lines, const char *text)
{
    for (size_t i = 0; lines[i] != NULL; i++) {
        if (strcmp(lines[i], text) == 0) {
            return i;
        }
    }
    fail_msg("no line \"%s\"", text);
    return 0;
}

/* Which verdict the first recipient must have when the connection is lost after `cut` server bytes.
 */
static enum verdict verdict_at(size_t cut, const char *const *lines, const char *last_before_dot,
                               const char *final)
{
    size_t dot = bytes_before(lines, line_of(lines, last_before_dot));
    size_t done = bytes_before(lines, line_of(lines, final) + 1);
    return cut >= done ? VERDICT_DELIVERED : cut >= dot ? VERDICT_UNKNOWN : VERDICT_TRANSIENT;
}

static void a_cut_at_every_byte_leaves_no_doubt_untold(void **state)
{
    (void)state;
    size_t total = bytes_before(two_in_a_row, sizeof two_in_a_row / sizeof *two_in_a_row - 1);
    for (size_t cut = 0; cut < total; cut++) {
        struct rig rig;
        rig_open(&rig);
        rig.cut = cut;
        rig_start(&rig);
        rig_run(&rig, two_in_a_row, true);
        smtp_client_lost(rig.client, "Cut.");
        for (size_t i = 0; i < 3; i++) {
            struct mail *mail = &rig.mails[i];
            if (mail->transaction.ctx == NULL) {
                continue; /* never given */
            }
            assert_int_equal(mail->dones, 1);
            assert_true(mail->starts <= 1);
            assert_int_equal(mail->transaction.untried,
                             mail->answers[0].verdict == VERDICT_TRANSIENT && mail->starts == 0);
        }
        if (rig.mails[0].transaction.ctx != NULL) {
            assert_verdict(&rig.mails[0], 0,
                           verdict_at(cut, two_in_a_row, "C A: 1", "S 250 2.0.0 first"));
        }
        if (rig.mails[1].transaction.ctx != NULL) {
            assert_verdict(&rig.mails[1], 0,
                           verdict_at(cut, two_in_a_row, "C A: 2", "S 250 2.0.0 second"));
        }
        rig_close(&rig);
    }
}

/* ---- Partial outcomes ---- */

static void check_all_refused_354(struct rig *rig)
{
    assert_verdict(&rig->mails[0], 0, VERDICT_RECIPIENT_PERMANENT);
    assert_int_equal(rig->mails[0].starts, 0);
    assert_false(rig->mails[0].transaction.untried);
    assert_verdict(&rig->mails[3], 0, VERDICT_DELIVERED);
}

static void nobody_taken_and_354_all_the_same(void **state)
{
    (void)state;
    static const char *const lines[] = {
        HELLO,
        "G 0",
        "C MAIL FROM:<s@x.org> SIZE=12",
        "C RCPT TO:<r1@x.org>",
        "C DATA",
        "S 250 ok",
        "S 550 5.1.1 nobody",
        "S 354 go",
        "C .",
        "G 3",
        "C MAIL FROM:<s@x.org> SIZE=6",
        "C RCPT TO:<r1@x.org>",
        "C DATA",
        "S 554 no valid recipients",
        "S 250 ok",
        "S 250 ok",
        "S 354 go",
        "C A: 4",
        "C .",
        "S 250 done",
        NULL,
    };
    transcript(lines, NULL, check_all_refused_354);
}

static void nobody_taken_and_data_refused_needs_rset(void **state)
{
    (void)state;
    static const char *const lines[] = {
        HELLO,
        "G 0",
        "C MAIL FROM:<s@x.org> SIZE=12",
        "C RCPT TO:<r1@x.org>",
        "C DATA",
        "S 250 ok",
        "S 550 5.1.1 nobody",
        "S 503 no recipients",
        "G 3",
        "C RSET",
        "C MAIL FROM:<s@x.org> SIZE=6",
        "C RCPT TO:<r1@x.org>",
        "C DATA",
        "S 250 reset",
        "S 250 ok",
        "S 250 ok",
        "S 354 go",
        "C A: 4",
        "C .",
        "S 250 done",
        NULL,
    };
    transcript(lines, NULL, check_all_refused_354);
}

static void check_mail_refused(struct rig *rig)
{
    assert_verdict(&rig->mails[1], 0, VERDICT_MESSAGE_PERMANENT);
    assert_verdict(&rig->mails[1], 2, VERDICT_MESSAGE_PERMANENT);
    assert_string_equal(rig->mails[1].answers[2].text, "552 5.3.4 too big");
    assert_int_equal(rig->mails[1].starts, 0);
    assert_int_equal(rig->ended, 0);
}

static void a_refused_mail_answers_for_all_recipients(void **state)
{
    (void)state;
    static const char *const lines[] = {
        HELLO,
        "G 1",
        "C MAIL FROM:<s@x.org> SIZE=14",
        "C RCPT TO:<r1@x.org>",
        "C RCPT TO:<r2@x.org>",
        "C RCPT TO:<r3@x.org>",
        "C DATA",
        "S 552 5.3.4 too big",
        "S 503 need MAIL",
        "S 503 need MAIL",
        "S 503 need MAIL",
        "S 503 need RCPT",
        NULL,
    };
    transcript(lines, NULL, check_mail_refused);
}

static void check_data_refused(struct rig *rig)
{
    assert_verdict(&rig->mails[1], 0, VERDICT_TRANSIENT);
    assert_string_equal(rig->mails[1].answers[0].text, "451 4.3.0 not now");
    assert_verdict(&rig->mails[1], 1, VERDICT_RECIPIENT_PERMANENT);
    assert_false(rig->mails[1].transaction.untried);
}

static void a_refused_data_answers_for_those_taken(void **state)
{
    (void)state;
    static const char *const lines[] = {
        HELLO,
        "G 1",
        "C MAIL FROM:<s@x.org> SIZE=14",
        "C RCPT TO:<r1@x.org>",
        "C RCPT TO:<r2@x.org>",
        "C RCPT TO:<r3@x.org>",
        "C DATA",
        "S 250 ok",
        "S 250 ok",
        "S 550 no",
        "S 250 ok",
        "S 451 4.3.0 not now",
        NULL,
    };
    transcript(lines, NULL, check_data_refused);
}

static void check_throttled(struct rig *rig)
{
    assert_verdict(&rig->mails[0], 0, VERDICT_THROTTLED);
    assert_int_equal(rig->mails[0].answers[0].scope, SCOPE_ACCOUNT);
    assert_true(rig->mails[0].answers[0].wait_ms > 0);
    assert_int_equal(rig->mails[0].starts, 1);
}

static void a_throttle_at_the_dot_is_one(void **state)
{
    (void)state;
    static const char *const lines[] = {
        HELLO,
        "G 0",
        "C MAIL FROM:<s@x.org> SIZE=12",
        "C RCPT TO:<r1@x.org>",
        "C DATA",
        "S 250 ok",
        "S 250 ok",
        "S 354 go",
        "C A: 1",
        "C ",
        "C hi",
        "C .",
        "S 432 4.3.2 Concurrent connections limit exceeded.",
        NULL,
    };
    transcript(lines, NULL, check_throttled);
}

static void check_rounds(struct rig *rig)
{
    for (size_t i = 0; i < 3; i++) {
        assert_verdict(&rig->mails[1], i, VERDICT_DELIVERED);
    }
    assert_int_equal(rig->mails[1].starts, 1);
    assert_string_equal(rig->mails[1].answers[0].text, "250 round 1");
    assert_string_equal(rig->mails[1].answers[2].text, "250 round 2");
    assert_verdict(&rig->mails[0], 0, VERDICT_DELIVERED);
}

/* The second round comes before what waits, but after what has been opened already. */
static void too_many_recipients_go_in_a_further_round(void **state)
{
    (void)state;
    static const char *const lines[] = {
        HELLO,
        "G 1",
        "C MAIL FROM:<s@x.org> SIZE=14",
        "C RCPT TO:<r1@x.org>",
        "C RCPT TO:<r2@x.org>",
        "C RCPT TO:<r3@x.org>",
        "C DATA",
        "S 250 ok",
        "S 250 ok",
        "S 452 4.5.3 Too many recipients",
        "S 452 4.5.3 Too many recipients",
        "S 354 go",
        "C A: 2",
        "C ",
        "C ..dot",
        "C .",
        "G 0",
        "C MAIL FROM:<s@x.org> SIZE=12",
        "C RCPT TO:<r1@x.org>",
        "C DATA",
        "S 250 round 1",
        "S 250 ok",
        "S 250 ok",
        "S 354 go",
        "C A: 1",
        "C ",
        "C hi",
        "C .",
        "C MAIL FROM:<s@x.org> SIZE=14",
        "C RCPT TO:<r2@x.org>",
        "C RCPT TO:<r3@x.org>",
        "C DATA",
        "S 250 done",
        "S 250 ok",
        "S 250 ok",
        "S 250 ok",
        "S 354 go",
        "C A: 2",
        "C ",
        "C ..dot",
        "C .",
        "S 250 round 2",
        NULL,
    };
    transcript(lines, NULL, check_rounds);
}

static void check_first_too_many(struct rig *rig)
{
    assert_verdict(&rig->mails[0], 0, VERDICT_TRANSIENT);
    assert_int_equal(rig->mails[0].starts, 0);
}

static void too_many_at_the_first_recipient_is_transient(void **state)
{
    (void)state;
    static const char *const lines[] = {
        HELLO,    "G 0",      "C MAIL FROM:<s@x.org> SIZE=12",   "C RCPT TO:<r1@x.org>",
        "C DATA", "S 250 ok", "S 452 4.5.3 Too many recipients", "S 503 no recipients",
        NULL,
    };
    transcript(lines, NULL, check_first_too_many);
}

static void check_421_dot(struct rig *rig)
{
    assert_verdict(&rig->mails[0], 0, VERDICT_TRANSIENT);
    assert_false(rig->mails[0].transaction.untried);
    assert_verdict(&rig->mails[3], 0, VERDICT_TRANSIENT);
    assert_true(rig->mails[3].transaction.untried);
    assert_int_equal(rig->ended, 1);
}

static void a_421_to_the_dot_is_an_answer_and_the_end(void **state)
{
    (void)state;
    static const char *const lines[] = {
        HELLO,
        "G 0",
        "C MAIL FROM:<s@x.org> SIZE=12",
        "C RCPT TO:<r1@x.org>",
        "C DATA",
        "G 3",
        "S 250 ok",
        "S 250 ok",
        "S 354 go",
        "C A: 1",
        "C ",
        "C hi",
        "C .",
        "C MAIL FROM:<s@x.org> SIZE=6",
        "C RCPT TO:<r1@x.org>",
        "C DATA",
        "S 421 4.3.2 shutting down",
        NULL,
    };
    transcript(lines, NULL, check_421_dot);
}

static void check_421_mail(struct rig *rig)
{
    assert_verdict(&rig->mails[0], 0, VERDICT_TRANSIENT);
    assert_true(rig->mails[0].transaction.untried);
    assert_string_equal(rig->mails[0].answers[0].text, "421 4.4.2 idle too long");
    assert_int_equal(rig->ended, 1);
}

static void a_421_before_content_leaves_it_untried(void **state)
{
    (void)state;
    static const char *const lines[] = {
        HELLO,
        "G 0",
        "C MAIL FROM:<s@x.org> SIZE=12",
        "C RCPT TO:<r1@x.org>",
        "C DATA",
        "S 421 4.4.2 idle too long",
        NULL,
    };
    transcript(lines, NULL, check_421_mail);
}

static void check_idle_end(struct rig *rig)
{
    assert_int_equal(rig->ended, 1);
    assert_string_equal(smtp_client_reason(rig->client)->text,
                        "451 4.7.0 Timeout waiting for client input");
}

static void a_server_may_leave_an_idle_session(void **state)
{
    (void)state;
    static const char *const lines[] = {HELLO, "S 451 4.7.0 Timeout waiting for client input",
                                        NULL};
    transcript(lines, NULL, check_idle_end);
}

static void set_start_fails(struct rig *rig)
{
    rig->start_fails = true;
}

static void check_start_fails(struct rig *rig)
{
    assert_verdict(&rig->mails[0], 0, VERDICT_TRANSIENT);
    assert_false(rig->mails[0].transaction.untried);
    assert_int_equal(rig->mails[0].starts, 1);
    assert_int_equal(rig->ended, 1);
    assert_verdict(&rig->mails[3], 0, VERDICT_TRANSIENT);
    assert_true(rig->mails[3].transaction.untried);
}

static void a_failed_start_sends_nothing(void **state)
{
    (void)state;
    static const char *const lines[] = {
        HELLO,
        "G 0",
        "C MAIL FROM:<s@x.org> SIZE=12",
        "C RCPT TO:<r1@x.org>",
        "C DATA",
        "G 3",
        "S 250 ok",
        "S 250 ok",
        "S 354 go",
        NULL,
    };
    transcript(lines, set_start_fails, check_start_fails);
}

static void check_proto_dot(struct rig *rig)
{
    assert_verdict(&rig->mails[0], 0, VERDICT_UNKNOWN);
    assert_int_equal(rig->ended, 1);
}

static void nonsense_after_the_dot_is_unknown(void **state)
{
    (void)state;
    static const char *const lines[] = {
        HELLO,
        "G 0",
        "C MAIL FROM:<s@x.org> SIZE=12",
        "C RCPT TO:<r1@x.org>",
        "C DATA",
        "S 250 ok",
        "S 250 ok",
        "S 354 go",
        "C A: 1",
        "C ",
        "C hi",
        "C .",
        "S what?",
        NULL,
    };
    transcript(lines, NULL, check_proto_dot);
    static const char *const go_again[] = {
        HELLO,
        "G 0",
        "C MAIL FROM:<s@x.org> SIZE=12",
        "C RCPT TO:<r1@x.org>",
        "C DATA",
        "S 250 ok",
        "S 250 ok",
        "S 354 go",
        "C A: 1",
        "C ",
        "C hi",
        "C .",
        "S 354 go on",
        NULL,
    };
    transcript(go_again, NULL, check_proto_dot);
}

static void check_250_to_data(struct rig *rig)
{
    assert_verdict(&rig->mails[0], 0, VERDICT_TRANSIENT);
    assert_int_equal(rig->mails[0].starts, 0);
    assert_int_equal(rig->ended, 1);
}

/* A server that answers the dot before it was sent has not taken the message. */
static void an_answer_before_the_question_is_no_answer(void **state)
{
    (void)state;
    static const char *const lines[] = {
        HELLO, "G 0", "C MAIL FROM:<s@x.org> SIZE=12", "C RCPT TO:<r1@x.org>", "C DATA", NULL,
    };
    struct rig rig;
    rig_open(&rig);
    rig_start(&rig);
    rig_run(&rig, lines, false);
    rig_feed(&rig, SPAN_LIT("250 a\r\n250 b\r\n354 c\r\n250 d\r\n"));
    assert_verdict(&rig.mails[0], 0, VERDICT_TRANSIENT);
    assert_int_equal(rig.ended, 1);
    rig_close(&rig);
}

static void a_yes_to_data_is_no_delivery(void **state)
{
    (void)state;
    static const char *const lines[] = {
        HELLO,
        "G 0",
        "C MAIL FROM:<s@x.org> SIZE=12",
        "C RCPT TO:<r1@x.org>",
        "C DATA",
        "S 250 ok",
        "S 250 ok",
        "S 250 ok",
        NULL,
    };
    transcript(lines, NULL, check_250_to_data);
}

/* ---- Step by step ---- */

#define PLAIN_HELLO "S 220 mx", "C EHLO gw.test", "S 250 mx"

static void check_stepwise(struct rig *rig)
{
    assert_verdict(&rig->mails[1], 0, VERDICT_DELIVERED);
    assert_verdict(&rig->mails[1], 1, VERDICT_RECIPIENT_PERMANENT);
    assert_verdict(&rig->mails[1], 2, VERDICT_TRANSIENT);
    assert_int_equal(rig->mails[1].starts, 1);
}

static void without_pipelining_every_command_waits(void **state)
{
    (void)state;
    static const char *const lines[] = {
        PLAIN_HELLO,
        "G 1",
        "C MAIL FROM:<s@x.org>",
        "S 250 ok",
        "C RCPT TO:<r1@x.org>",
        "S 250 ok",
        "C RCPT TO:<r2@x.org>",
        "S 550 no",
        "C RCPT TO:<r3@x.org>",
        "S 450 later",
        "C DATA",
        "S 354 go",
        "C A: 2",
        "C ",
        "C ..dot",
        "C .",
        "S 250 done",
        NULL,
    };
    transcript(lines, NULL, check_stepwise);
}

static void check_stepwise_refused(struct rig *rig)
{
    assert_verdict(&rig->mails[0], 0, VERDICT_RECIPIENT_PERMANENT);
    assert_verdict(&rig->mails[2], 0, VERDICT_MESSAGE_PERMANENT);
    assert_verdict(&rig->mails[3], 0, VERDICT_DELIVERED);
}

static void without_pipelining_refusals_stop_the_transaction(void **state)
{
    (void)state;
    static const char *const lines[] = {
        PLAIN_HELLO,
        "G 0",
        "C MAIL FROM:<s@x.org>",
        "S 250 ok",
        "C RCPT TO:<r1@x.org>",
        "S 550 no",
        "G 2",
        "C RSET",
        "C MAIL FROM:<>",
        "S 250 reset",
        "S 550 no bounces",
        "G 3",
        "C MAIL FROM:<s@x.org>",
        "S 250 ok",
        "C RCPT TO:<r1@x.org>",
        "S 250 ok",
        "C DATA",
        "S 354 go",
        "C A: 4",
        "C .",
        "S 250 done",
        NULL,
    };
    transcript(lines, NULL, check_stepwise_refused);
}

/* ---- A second session ---- */

static const char *const dies_in_the_middle[] = {
    HELLO,
    "G 1",
    "C MAIL FROM:<s@x.org> SIZE=14",
    "C RCPT TO:<r1@x.org>",
    "C RCPT TO:<r2@x.org>",
    "C RCPT TO:<r3@x.org>",
    "C DATA",
    "S 250 ok",
    "S 250 ok",
    "S 550 5.1.1 nobody",
    "S 421 4.3.2 going down",
    NULL,
};

static const char *const takes_the_rest[] = {
    HELLO,
    NULL,
};

static const char *const takes_the_rest_envelope[] = {
    "C MAIL FROM:<s@x.org> SIZE=14",
    "C RCPT TO:<r1@x.org>",
    "C RCPT TO:<r3@x.org>",
    "C DATA",
    "S 250 ok",
    "S 250 ok",
    "S 250 ok",
    "S 354 go",
    "C A: 2",
    "C ",
    "C ..dot",
    "C .",
    "S 250 2.0.0 second session",
    NULL,
};

/* A recipient a dead session had accepted was not named to the next one, whose yes was then taken
 * for his as well: his mail was lost. */
static void what_a_dead_session_accepted_is_asked_again(void **state)
{
    (void)state;
    struct rig first;
    struct rig second;
    rig_open(&first);
    rig_start(&first);
    rig_run(&first, dies_in_the_middle, false);
    struct mail *mail = &first.mails[1];
    assert_verdict(mail, 0, VERDICT_TRANSIENT);
    assert_verdict(mail, 1, VERDICT_RECIPIENT_PERMANENT);
    assert_true(mail->transaction.untried);
    mail->dones = 0;
    rig_open(&second);
    rig_start(&second);
    rig_run(&second, takes_the_rest, false);
    smtp_client_give(second.client, &mail->transaction);
    rig_run(&second, takes_the_rest_envelope, false);
    assert_verdict(mail, 0, VERDICT_DELIVERED);
    assert_verdict(mail, 1, VERDICT_RECIPIENT_PERMANENT);
    assert_verdict(mail, 2, VERDICT_DELIVERED);
    assert_false(mail->transaction.untried);
    assert_int_equal(mail->starts, 1);
    rig_close(&second);
    rig_close(&first);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pipelined_transactions_share_a_group),
        cmocka_unit_test(a_cut_at_every_byte_leaves_no_doubt_untold),
        cmocka_unit_test(nobody_taken_and_354_all_the_same),
        cmocka_unit_test(nobody_taken_and_data_refused_needs_rset),
        cmocka_unit_test(a_refused_mail_answers_for_all_recipients),
        cmocka_unit_test(a_refused_data_answers_for_those_taken),
        cmocka_unit_test(a_throttle_at_the_dot_is_one),
        cmocka_unit_test(too_many_recipients_go_in_a_further_round),
        cmocka_unit_test(too_many_at_the_first_recipient_is_transient),
        cmocka_unit_test(a_421_to_the_dot_is_an_answer_and_the_end),
        cmocka_unit_test(a_421_before_content_leaves_it_untried),
        cmocka_unit_test(what_a_dead_session_accepted_is_asked_again),
        cmocka_unit_test(a_server_may_leave_an_idle_session),
        cmocka_unit_test(a_failed_start_sends_nothing),
        cmocka_unit_test(nonsense_after_the_dot_is_unknown),
        cmocka_unit_test(an_answer_before_the_question_is_no_answer),
        cmocka_unit_test(a_yes_to_data_is_no_delivery),
        cmocka_unit_test(without_pipelining_every_command_waits),
        cmocka_unit_test(without_pipelining_refusals_stop_the_transaction),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
