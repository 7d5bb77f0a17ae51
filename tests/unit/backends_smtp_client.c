/* Unit tests of backends/smtp_client: transcripts, run whole, byte by byte, and cut at every byte.
 *
 * A transcript is a list of lines: "S text" the server says, "C text" we must have said by then
 * (all of it and no more), "G n" transaction n is given, "T" TLS is up, "Q" quit. */
#include "backends/smtp_client.h"
#include "backends/smtp_reply.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define TRANSACTIONS_MAX 4

struct mail {
    struct smtp_transaction transaction;
    struct answer answers[BATCH_RECIPIENTS_MAX];
    struct span recipients[BATCH_RECIPIENTS_MAX];
    size_t recipient_count;
    struct span content[2];
    bool needs_8bitmime;
    bool needs_smtputf8;
    const char *from;
    unsigned starts;
    unsigned dones;
};

struct rig {
    struct smtp_client_conf conf;
    struct smtp_client *client;
    struct buf wire;   /* what we said since the last look */
    struct buf unread; /* server bytes not used yet */
    struct mail mails[TRANSACTIONS_MAX];
    unsigned ready;
    unsigned ended;
    unsigned tls_starts;
    bool start_fails;
    bool write_fails;
    unsigned congestion; /* how many more questions are answered with yes */
    size_t fed;
    size_t cut; /* server bytes after which the connection is lost */
};

static int rig_write(void *ctx, struct span bytes)
{
    struct rig *rig = ctx;
    return rig->write_fails ? ERR_CLOSED : buf_append(&rig->wire, bytes);
}

static bool rig_congested(void *ctx)
{
    struct rig *rig = ctx;
    if (rig->congestion > 0) {
        rig->congestion--;
        return true;
    }
    return false;
}

static void rig_on_start_tls(void *ctx)
{
    struct rig *rig = ctx;
    rig->tls_starts++;
}

static void rig_on_ready(void *ctx)
{
    struct rig *rig = ctx;
    rig->ready++;
}

static int rig_on_start(void *ctx, struct smtp_transaction *transaction)
{
    struct rig *rig = ctx;
    struct mail *mail = transaction->ctx;
    mail->starts++;
    return rig->start_fails ? ERR_STALE : 0;
}

static void rig_on_done(void *ctx, struct smtp_transaction *transaction)
{
    (void)ctx;
    struct mail *mail = transaction->ctx;
    mail->dones++;
}

static void rig_on_end(void *ctx)
{
    struct rig *rig = ctx;
    rig->ended++;
}

static const struct smtp_client_ops rig_ops = {
    .write = rig_write,
    .congested = rig_congested,
    .on_start_tls = rig_on_start_tls,
    .on_ready = rig_on_ready,
    .on_start = rig_on_start,
    .on_done = rig_on_done,
    .on_end = rig_on_end,
};

static void mail_init(struct mail *mail, const char *from, const char *content, size_t count,
                      const char *const *recipients)
{
    *mail = (struct mail){.from = from, .recipient_count = count};
    mail->content[0] = span_of(content);
    for (size_t i = 0; i < count; i++) {
        mail->recipients[i] = span_of(recipients[i]);
    }
}

static void rig_open(struct rig *rig)
{
    static const char *const one[] = {"r1@x.org"};
    static const char *const three[] = {"r1@x.org", "r2@x.org", "r3@x.org"};
    *rig = (struct rig){.conf = {.hostname = "gw.test", .kind = KIND_RELAY}, .cut = SIZE_MAX};
    mail_init(&rig->mails[0], "s@x.org", "A: 1\r\n\r\nhi\r\n", 1, one);
    mail_init(&rig->mails[1], "s@x.org", "A: 2\r\n\r\n.dot\r\n", 3, three);
    mail_init(&rig->mails[2], "", "A: 3\r\n", 1, one);
    mail_init(&rig->mails[3], "s@x.org", "A: 4\r\n", 1, one);
    buf_init(&rig->wire, 1 << 20);
    buf_init(&rig->unread, 1 << 20);
}

static void rig_start(struct rig *rig)
{
    rig->client = smtp_client_new(&rig->conf, &rig_ops, rig);
}

static void rig_close(struct rig *rig)
{
    smtp_client_lost(rig->client, "The test is over.");
    assert_int_equal(rig->ended, 1);
    assert_int_equal(smtp_client_load(rig->client), 0);
    smtp_client_free(&rig->client);
    buf_release(&rig->wire);
    buf_release(&rig->unread);
}

static void rig_give(struct rig *rig, size_t index)
{
    struct mail *mail = &rig->mails[index];
    mail->transaction = (struct smtp_transaction){
        .reverse_path = span_of(mail->from),
        .recipients = mail->recipients,
        .recipient_count = mail->recipient_count,
        .content = {mail->content[0], mail->content[1]},
        .needs_8bitmime = mail->needs_8bitmime,
        .needs_smtputf8 = mail->needs_smtputf8,
        .answers = mail->answers,
        .ctx = mail,
    };
    smtp_client_give(rig->client, &mail->transaction);
}

static void rig_feed(struct rig *rig, struct span bytes)
{
    if (rig->fed + bytes.len > rig->cut) {
        bytes.len = rig->cut - rig->fed;
    }
    rig->fed += bytes.len;
    assert_int_equal(buf_append(&rig->unread, bytes), 0);
    size_t used = smtp_client_feed(rig->client, buf_span(&rig->unread));
    buf_consume(&rig->unread, used);
}

/* Feeds `bytes` at once, or one byte at a time. */
static void rig_say(struct rig *rig, struct span bytes, bool bytewise)
{
    if (!bytewise) {
        rig_feed(rig, bytes);
        return;
    }
    for (size_t i = 0; i < bytes.len; i++) {
        rig_feed(rig, span_make(bytes.data + i, 1));
    }
}

/* Checks that we have said exactly the C lines from `line` on; returns the first line after them.
 */
static size_t expect_client(struct rig *rig, const char *const *lines, size_t line)
{
    struct buf want;
    buf_init(&want, 1 << 20);
    while (lines[line] != NULL && lines[line][0] == 'C') {
        assert_int_equal(buf_printf(&want, "%s\r\n", lines[line] + 2), 0);
        line++;
    }
    if (!span_eq(buf_span(&rig->wire), buf_span(&want))) {
        fail_msg("before line %zu we said:\n%.*s\nand should have said:\n%.*s", line,
                 SPAN_FMT(buf_span(&rig->wire)), SPAN_FMT(buf_span(&want)));
    }
    buf_reset(&rig->wire);
    buf_release(&want);
    return line;
}

static size_t say_server(struct rig *rig, const char *const *lines, size_t line, bool bytewise)
{
    struct buf said;
    buf_init(&said, 1 << 20);
    while (lines[line] != NULL && lines[line][0] == 'S') {
        assert_int_equal(buf_printf(&said, "%s\r\n", lines[line] + 2), 0);
        line++;
    }
    rig_say(rig, buf_span(&said), bytewise);
    buf_release(&said);
    return line;
}

/* Runs until the end or the cut. */
static void rig_run(struct rig *rig, const char *const *lines, bool bytewise)
{
    size_t line = 0;
    while (lines[line] != NULL) {
        switch (lines[line][0]) {
        case 'S':
            line = say_server(rig, lines, line, bytewise);
            break;
        case 'G':
            if (rig->fed < rig->cut) {
                rig_give(rig, (size_t)(lines[line][2] - '0'));
            }
            line++;
            break;
        case 'T':
            smtp_client_tls_done(rig->client);
            line++;
            break;
        case 'Q':
            smtp_client_quit(rig->client);
            line++;
            break;
        default:
            break;
        }
        if (rig->fed >= rig->cut) {
            return;
        }
        line = expect_client(rig, lines, line);
    }
}

/* Both ways; `check` sees the rig after each. */
static void transcript(const char *const *lines, void (*set)(struct rig *rig),
                       void (*check)(struct rig *rig))
{
    for (int bytewise = 0; bytewise < 2; bytewise++) {
        struct rig rig;
        rig_open(&rig);
        if (set != NULL) {
            set(&rig);
        }
        rig_start(&rig);
        rig_run(&rig, lines, bytewise != 0);
        check(&rig);
        rig_close(&rig);
    }
}

static void assert_verdict(const struct mail *mail, size_t recipient, enum verdict verdict)
{
    assert_int_equal(mail->dones, 1);
    if (mail->answers[recipient].verdict != verdict) {
        fail_msg("recipient %zu: verdict %d \"%s\", not %d", recipient,
                 (int)mail->answers[recipient].verdict, mail->answers[recipient].text,
                 (int)verdict);
    }
}

/* ---- Pipelined transactions ---- */

#define HELLO                                                                           \
    "S 220 mx ESMTP", "C EHLO gw.test", "S 250-mx at your service", "S 250-PIPELINING", \
        "S 250-SIZE 1000", "S 250-8BITMIME", "S 250 SMTPUTF8"

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

/* ---- Setting up ---- */

static void check_ready(struct rig *rig)
{
    assert_int_equal(rig->ready, 1);
    assert_int_equal(rig->ended, 0);
}

static void an_old_server_is_greeted_with_helo(void **state)
{
    (void)state;
    static const char *const lines[] = {"S 220 mx",       "C EHLO gw.test", "S 502 what",
                                        "C HELO gw.test", "S 250 mx",       NULL};
    transcript(lines, NULL, check_ready);
}

static void set_hve(struct rig *rig)
{
    rig->conf.kind = KIND_HVE;
    rig->conf.starttls = SMTP_STARTTLS_REQUIRED;
    rig->conf.user = "hve@contoso.test";
    rig->conf.password = "hve-password";
    rig->conf.password_needs_tls = true;
    rig->conf.prefer_login = true;
}

static void check_hve(struct rig *rig)
{
    check_ready(rig);
    assert_int_equal(rig->tls_starts, 1);
    assert_true((smtp_client_extensions(rig->client) & SMTP_EXT_CHUNKING) != 0);
    assert_true((smtp_client_extensions(rig->client) & SMTP_EXT_STARTTLS) == 0);
    assert_int_equal(smtp_client_room(rig->client), 2);
}

/* The list of services.md 5.1. */
static void the_session_of_exchange_online(void **state)
{
    (void)state;
    static const char *const lines[] = {
        "S 220 SY5P282CA0097.outlook.office365.com Microsoft ESMTP MAIL Service ready",
        "C EHLO gw.test",
        "S 250-SY5P282CA0097.outlook.office365.com Hello [192.0.2.1]",
        "S 250-SIZE 157286400",
        "S 250-PIPELINING",
        "S 250-DSN",
        "S 250-ENHANCEDSTATUSCODES",
        "S 250-STARTTLS",
        "S 250-8BITMIME",
        "S 250-BINARYMIME",
        "S 250-CHUNKING",
        "S 250 SMTPUTF8",
        "C STARTTLS",
        "S 220 2.0.0 SMTP server ready",
        "T",
        "C EHLO gw.test",
        "S 250-SY5P282CA0097.outlook.office365.com Hello [192.0.2.1]",
        "S 250-PIPELINING",
        "S 250-AUTH LOGIN XOAUTH2",
        "S 250-CHUNKING",
        "S 250 SMTPUTF8",
        "C AUTH LOGIN",
        "S 334 VXNlcm5hbWU6",
        "C aHZlQGNvbnRvc28udGVzdA==",
        "S 334 UGFzc3dvcmQ6",
        "C aHZlLXBhc3N3b3Jk",
        "S 235 2.7.0 Authentication successful",
        NULL,
    };
    transcript(lines, set_hve, check_hve);
}

static void set_plain(struct rig *rig)
{
    rig->conf.user = "app";
    rig->conf.password = "secret";
}

static void plain_is_used_where_it_is_offered(void **state)
{
    (void)state;
    static const char *const lines[] = {"S 220 mx",
                                        "C EHLO gw.test",
                                        "S 250-mx",
                                        "S 250 AUTH LOGIN PLAIN",
                                        "C AUTH PLAIN AGFwcABzZWNyZXQ=",
                                        "S 235 ok",
                                        NULL};
    transcript(lines, set_plain, check_ready);
    static const char *const old_form[] = {"S 220 mx",
                                           "C EHLO gw.test",
                                           "S 250-mx",
                                           "S 250 AUTH=PLAIN",
                                           "C AUTH PLAIN AGFwcABzZWNyZXQ=",
                                           "S 235 ok",
                                           NULL};
    transcript(old_form, set_plain, check_ready);
}

static void check_config(struct rig *rig)
{
    assert_int_equal(rig->ready, 0);
    assert_int_equal(rig->ended, 1);
    assert_int_equal(smtp_client_reason(rig->client)->verdict, VERDICT_CONFIG);
    assert_true(smtp_client_reason(rig->client)->scope != SCOPE_NONE);
}

static void sign_in_failures_are_configuration(void **state)
{
    (void)state;
    static const char *const refused[] = {
        "S 220 mx",
        "C EHLO gw.test",
        "S 250-mx",
        "S 250 AUTH PLAIN",
        "C AUTH PLAIN AGFwcABzZWNyZXQ=",
        "S 535 5.7.3 Authentication unsuccessful",
        NULL,
    };
    transcript(refused, set_plain, check_config);
    static const char *const not_offered[] = {"S 220 mx", "C EHLO gw.test", "S 250-mx",
                                              "S 250 AUTH XOAUTH2", NULL};
    transcript(not_offered, set_plain, check_config);
    static const char *const no_tls[] = {"S 220 mx", "C EHLO gw.test", "S 250-mx",
                                         "S 250 AUTH LOGIN", NULL};
    transcript(no_tls, set_hve, check_config);
}

static void set_optional(struct rig *rig)
{
    set_plain(rig);
    rig->conf.starttls = SMTP_STARTTLS_OFFERED;
    rig->conf.password_needs_tls = true;
}

static void optional_tls_never_sends_the_password_in_clear(void **state)
{
    (void)state;
    static const char *const stripped[] = {"S 220 mx", "C EHLO gw.test", "S 250-mx",
                                           "S 250 AUTH PLAIN", NULL};
    transcript(stripped, set_optional, check_config);
    static const char *const refused[] = {
        "S 220 mx",         "C EHLO gw.test", "S 250-mx", "S 250-STARTTLS",
        "S 250 AUTH PLAIN", "C STARTTLS",     "S 454 no", NULL,
    };
    transcript(refused, set_optional, check_config);
}

static void check_transient(struct rig *rig)
{
    assert_int_equal(rig->ready, 0);
    assert_int_equal(rig->ended, 1);
    assert_int_equal(smtp_client_reason(rig->client)->verdict, VERDICT_TRANSIENT);
}

static void refusals_before_the_sign_in_are_transient(void **state)
{
    (void)state;
    static const char *const greeting[] = {"S 554 no service", NULL};
    transcript(greeting, NULL, check_transient);
    static const char *const busy[] = {"S 421 4.3.2 busy", NULL};
    transcript(busy, NULL, check_transient);
    static const char *const hello[] = {"S 220 mx", "C EHLO gw.test", "S 450 not now", NULL};
    transcript(hello, NULL, check_transient);
    static const char *const starttls[] = {
        "S 220 mx",   "C EHLO gw.test",  "S 250-mx", "S 250 STARTTLS",
        "C STARTTLS", "S 454 TLS later", NULL};
    transcript(starttls, set_hve, check_transient);
    static const char *const nonsense[] = {"S HTTP/1.1 400 Bad Request", NULL};
    transcript(nonsense, NULL, check_transient);
}

/* Bytes after the reply to STARTTLS were sent by somebody in between (CVE-2011-0411): they must not
 * be read. */
static void bytes_before_tls_are_thrown_away(void **state)
{
    (void)state;
    struct rig rig;
    rig_open(&rig);
    set_hve(&rig);
    rig_start(&rig);
    rig_feed(&rig, SPAN_LIT("220 mx\r\n250-mx\r\n250 STARTTLS\r\n"));
    struct span both = SPAN_LIT("220 go\r\n250-evil\r\n250 AUTH LOGIN\r\n");
    assert_int_equal(smtp_client_feed(rig.client, both), both.len);
    buf_reset(&rig.wire);
    smtp_client_tls_done(rig.client);
    assert_true(span_eq(buf_span(&rig.wire), SPAN_LIT("EHLO gw.test\r\n")));
    assert_int_equal(smtp_client_extensions(rig.client), 0);
    rig_close(&rig);
}

/* ---- What never leaves ---- */

static void rig_ready(struct rig *rig, const char *ehlo)
{
    rig_start(rig);
    rig_feed(rig, SPAN_LIT("220 mx\r\n"));
    rig_feed(rig, span_of(ehlo));
    assert_int_equal(rig->ready, 1);
    buf_reset(&rig->wire);
}

static void check_never_sent(struct rig *rig, const char *ehlo, const char *text)
{
    rig_ready(rig, ehlo);
    rig_give(rig, 0);
    assert_verdict(&rig->mails[0], 0, VERDICT_MESSAGE_PERMANENT);
    assert_non_null(strstr(rig->mails[0].answers[0].text, text));
    assert_int_equal(buf_len(&rig->wire), 0);
    assert_int_equal(rig->ended, 0);
    assert_int_equal(rig->mails[0].starts, 0);
    rig_close(rig);
}

static void what_cannot_pass_is_not_begun(void **state)
{
    (void)state;
    struct rig rig;
    rig_open(&rig);
    rig.mails[0].needs_8bitmime = true;
    check_never_sent(&rig, "250-mx\r\n250 PIPELINING\r\n", "8BITMIME");
    rig_open(&rig);
    rig.mails[0].needs_smtputf8 = true;
    check_never_sent(&rig, "250 mx\r\n", "SMTPUTF8");
    rig_open(&rig);
    rig.mails[0].recipients[0] = SPAN_LIT("m\xc3\xbcller@x.org");
    check_never_sent(&rig, "250 mx\r\n", "SMTPUTF8");
    rig_open(&rig);
    check_never_sent(&rig, "250-mx\r\n250 SIZE 11\r\n", "12 bytes");
    rig_open(&rig);
    rig.conf.message_bytes = 11;
    check_never_sent(&rig, "250-mx\r\n250 SIZE 0\r\n", "12 bytes");
    rig_open(&rig);
    rig.mails[0].from = "a@x.org>\r\nRCPT TO:<b@x.org";
    check_never_sent(&rig, "250 mx\r\n", "control");
}

static void an_address_cannot_smuggle_a_command(void **state)
{
    (void)state;
    struct rig rig;
    rig_open(&rig);
    rig.mails[1].recipients[1] = SPAN_LIT("a@x.org>\r\nRSET\r\nX:<");
    rig_ready(&rig, "250-mx\r\n250 PIPELINING\r\n");
    rig_give(&rig, 1);
    assert_true(
        span_eq(buf_span(&rig.wire), SPAN_LIT("MAIL FROM:<s@x.org>\r\nRCPT TO:<r1@x.org>\r\n"
                                              "RCPT TO:<r3@x.org>\r\nDATA\r\n")));
    rig_feed(&rig, SPAN_LIT("250 a\r\n250 b\r\n250 c\r\n354 d\r\n"));
    rig_feed(&rig, SPAN_LIT("250 e\r\n"));
    assert_verdict(&rig.mails[1], 0, VERDICT_DELIVERED);
    assert_verdict(&rig.mails[1], 1, VERDICT_RECIPIENT_PERMANENT);
    assert_verdict(&rig.mails[1], 2, VERDICT_DELIVERED);
    rig_close(&rig);
}

static void parameters_are_sent_when_needed(void **state)
{
    (void)state;
    struct rig rig;
    rig_open(&rig);
    rig.mails[0].needs_8bitmime = true;
    rig.mails[0].recipients[0] = SPAN_LIT("m\xc3\xbcller@x.org");
    rig_ready(&rig, "250-mx\r\n250-SIZE\r\n250-8bitmime\r\n250 smtputf8\r\n");
    rig_give(&rig, 0);
    assert_true(span_eq(buf_span(&rig.wire),
                        SPAN_LIT("MAIL FROM:<s@x.org> SIZE=12 BODY=8BITMIME SMTPUTF8\r\n")));
    rig_close(&rig);
}

/* ---- Content ---- */

/* What goes over the wire for a content in two pieces, congested before every chunk. */
static void check_content(struct span first, struct span second, const char *want)
{
    struct rig rig;
    rig_open(&rig);
    rig.mails[0].content[0] = first;
    rig.mails[0].content[1] = second;
    rig_ready(&rig, "250-mx\r\n250 PIPELINING\r\n");
    rig_give(&rig, 0);
    buf_reset(&rig.wire);
    rig.congestion = 1;
    rig_feed(&rig, SPAN_LIT("250 a\r\n250 b\r\n354 c\r\n"));
    if (first.len + second.len > 0) {
        assert_int_equal(buf_len(&rig.wire), 0); /* congested */
        assert_int_equal(smtp_client_wait_ms(rig.client), 180000);
    }
    smtp_client_pump(rig.client);
    if (!span_eq(buf_span(&rig.wire), span_of(want))) {
        fail_msg("\"%.*s\"+\"%.*s\" became \"%.*s\"", SPAN_FMT(first), SPAN_FMT(second),
                 SPAN_FMT(buf_span(&rig.wire)));
    }
    rig_close(&rig);
}

static void dots_are_doubled_at_the_start_of_lines_only(void **state)
{
    (void)state;
    static const struct {
        const char *content;
        const char *wire;
    } rows[] = {
        {"", ".\r\n"},
        {".", "..\r\n.\r\n"},
        {"a\r\n", "a\r\n.\r\n"},
        {"a", "a\r\n.\r\n"},
        {".\r\n", "..\r\n.\r\n"},
        {"..\r\n", "...\r\n.\r\n"},
        {"a.b\r\n.c\r\n", "a.b\r\n..c\r\n.\r\n"},
        {"a\r\n.\r\n.\r\nb\r\n", "a\r\n..\r\n..\r\nb\r\n.\r\n"},
        {"a\r.b\r\n", "a\r.b\r\n.\r\n"},
        {"\r\n.x", "\r\n..x\r\n.\r\n"},
        {"a\r", "a\r\r\n.\r\n"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct span content = span_of(rows[i].content);
        for (size_t cut = 0; cut <= content.len; cut++) {
            check_content(span_make(content.data, cut),
                          span_make(content.data + cut, content.len - cut), rows[i].wire);
        }
    }
}

static void large_content_waits_for_the_stream(void **state)
{
    (void)state;
    size_t size = 300000;
    char *body = mem_alloc(size);
    for (size_t i = 0; i < size; i++) {
        body[i] = i % 10 == 8 ? '\r' : i % 10 == 9 ? '\n' : i % 10 == 0 ? '.' : 'x';
    }
    struct rig rig;
    rig_open(&rig);
    rig.mails[0].content[0] = span_make(body, size);
    rig_ready(&rig, "250-mx\r\n250 PIPELINING\r\n");
    rig_give(&rig, 0);
    buf_reset(&rig.wire);
    rig_feed(&rig, SPAN_LIT("250 a\r\n250 b\r\n"));
    size_t pauses = 0;
    rig.congestion = 1;
    rig_feed(&rig, SPAN_LIT("354 c\r\n"));
    while (!span_ends(buf_span(&rig.wire), SPAN_LIT("\r\n.\r\n"))) {
        rig.congestion = pauses % 2;
        pauses++;
        assert_true(pauses < 100);
        smtp_client_pump(rig.client);
    }
    /* Every line begins with a dot, so every line grew by one. */
    assert_int_equal(buf_len(&rig.wire), size + size / 10 + 3);
    smtp_client_lost(rig.client, "Cut.");
    assert_verdict(&rig.mails[0], 0, VERDICT_UNKNOWN);
    rig_close(&rig);
    mem_free(body);
}

static void lost_inside_the_content_is_transient(void **state)
{
    (void)state;
    struct rig rig;
    rig_open(&rig);
    rig_ready(&rig, "250-mx\r\n250 PIPELINING\r\n");
    rig_give(&rig, 0);
    rig.congestion = 1;
    rig_feed(&rig, SPAN_LIT("250 a\r\n250 b\r\n354 c\r\n"));
    smtp_client_lost(rig.client, "Cut.");
    assert_verdict(&rig.mails[0], 0, VERDICT_TRANSIENT);
    assert_false(rig.mails[0].transaction.untried);
    assert_string_equal(rig.mails[0].answers[0].text, "Cut.");
    rig_close(&rig);
}

static void a_failing_write_ends_the_session(void **state)
{
    (void)state;
    struct rig rig;
    rig_open(&rig);
    rig_ready(&rig, "250-mx\r\n250 PIPELINING\r\n");
    rig.write_fails = true;
    rig_give(&rig, 0);
    assert_verdict(&rig.mails[0], 0, VERDICT_TRANSIENT);
    assert_true(rig.mails[0].transaction.untried);
    rig_close(&rig);
}

/* ---- Patience and bounds ---- */

static void the_server_has_the_times_of_the_rfc(void **state)
{
    (void)state;
    struct rig rig;
    rig_open(&rig);
    rig_start(&rig);
    assert_int_equal(smtp_client_wait_ms(rig.client), 300000);
    rig_feed(&rig, SPAN_LIT("220 mx\r\n250-mx\r\n250 PIPELINING\r\n"));
    assert_int_equal(smtp_client_wait_ms(rig.client), 0);
    rig_give(&rig, 0);
    assert_int_equal(smtp_client_wait_ms(rig.client), 300000);
    rig_feed(&rig, SPAN_LIT("250 a\r\n250 b\r\n"));
    assert_int_equal(smtp_client_wait_ms(rig.client), 120000);
    rig_feed(&rig, SPAN_LIT("354 c\r\n"));
    assert_int_equal(smtp_client_wait_ms(rig.client), 600000);
    rig_close(&rig);

    rig_open(&rig);
    rig.conf.reply_timeout_ms = 20000;
    rig_start(&rig);
    assert_int_equal(smtp_client_wait_ms(rig.client), 20000);
    rig_close(&rig);
}

static void replies_are_bounded(void **state)
{
    (void)state;
    struct smtp_reply reply;
    smtp_reply_reset(&reply);
    char line[3000];
    memset(line, 'x', sizeof line);
    memcpy(line, "250 ", 4);
    struct span bytes = span_make(line, sizeof line);
    struct span text;
    assert_int_equal(smtp_reply_step(&reply, &bytes, &text), ERR_PROTO);
    bytes = span_make(line, SMTP_REPLY_LINE_MAX);
    assert_int_equal(smtp_reply_step(&reply, &bytes, &text), SMTP_REPLY_NEED);
    line[1000] = '\n';
    bytes = span_make(line, sizeof line);
    assert_int_equal(smtp_reply_step(&reply, &bytes, &text), SMTP_REPLY_LAST);
    assert_int_equal(reply.len, SMTP_REPLY_TEXT_MAX);

    smtp_reply_reset(&reply);
    for (int i = 0; i < SMTP_REPLY_LINES_MAX; i++) {
        bytes = SPAN_LIT("250-x\r\n");
        assert_int_equal(smtp_reply_step(&reply, &bytes, &text), SMTP_REPLY_LINE);
    }
    bytes = SPAN_LIT("250-x\r\n");
    assert_int_equal(smtp_reply_step(&reply, &bytes, &text), ERR_PROTO);
}

static void replies_are_joined(void **state)
{
    (void)state;
    struct smtp_reply reply;
    smtp_reply_reset(&reply);
    struct span bytes = SPAN_LIT("550-5.1.1 No such\r\n550-5.1.1 user\x01here\r\n550\r\n250 next");
    struct span text;
    assert_int_equal(smtp_reply_step(&reply, &bytes, &text), SMTP_REPLY_LINE);
    assert_int_equal(smtp_reply_step(&reply, &bytes, &text), SMTP_REPLY_LINE);
    assert_int_equal(smtp_reply_step(&reply, &bytes, &text), SMTP_REPLY_LAST);
    assert_true(span_eq(smtp_reply_text(&reply), SPAN_LIT("5.1.1 No such user?here ")));
    assert_true(span_eq(bytes, SPAN_LIT("250 next")));

    static const char *const bad[] = {"25 x\n", "650 x\n", "150 x\n", "abc x\n",
                                      "250x\n", "\n",      "\r\n",    "2500 x\n"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        smtp_reply_reset(&reply);
        bytes = span_of(bad[i]);
        assert_int_equal(smtp_reply_step(&reply, &bytes, &text), ERR_PROTO);
    }
    smtp_reply_reset(&reply);
    bytes = SPAN_LIT("250-x\r\n251 y\r\n");
    assert_int_equal(smtp_reply_step(&reply, &bytes, &text), SMTP_REPLY_LINE);
    assert_int_equal(smtp_reply_step(&reply, &bytes, &text), ERR_PROTO);
}

static void quit_before_the_sign_in_just_ends(void **state)
{
    (void)state;
    struct rig rig;
    rig_open(&rig);
    rig_start(&rig);
    smtp_client_quit(rig.client);
    assert_int_equal(rig.ended, 1);
    assert_int_equal(smtp_client_reason(rig.client)->verdict, VERDICT_DELIVERED);
    rig_close(&rig);
}

static void check_quit_waits(struct rig *rig)
{
    assert_verdict(&rig->mails[0], 0, VERDICT_DELIVERED);
    assert_int_equal(smtp_client_room(rig->client), 0);
}

static void quit_waits_for_the_running_transaction(void **state)
{
    (void)state;
    static const char *const lines[] = {
        HELLO,
        "G 0",
        "C MAIL FROM:<s@x.org> SIZE=12",
        "C RCPT TO:<r1@x.org>",
        "C DATA",
        "Q",
        "S 250 ok",
        "S 250 ok",
        "S 354 go",
        "C A: 1",
        "C ",
        "C hi",
        "C .",
        "S 250 done",
        "C QUIT",
        NULL,
    };
    transcript(lines, NULL, check_quit_waits);
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
        cmocka_unit_test(a_server_may_leave_an_idle_session),
        cmocka_unit_test(a_failed_start_sends_nothing),
        cmocka_unit_test(nonsense_after_the_dot_is_unknown),
        cmocka_unit_test(an_answer_before_the_question_is_no_answer),
        cmocka_unit_test(a_yes_to_data_is_no_delivery),
        cmocka_unit_test(without_pipelining_every_command_waits),
        cmocka_unit_test(without_pipelining_refusals_stop_the_transaction),
        cmocka_unit_test(an_old_server_is_greeted_with_helo),
        cmocka_unit_test(the_session_of_exchange_online),
        cmocka_unit_test(plain_is_used_where_it_is_offered),
        cmocka_unit_test(sign_in_failures_are_configuration),
        cmocka_unit_test(optional_tls_never_sends_the_password_in_clear),
        cmocka_unit_test(refusals_before_the_sign_in_are_transient),
        cmocka_unit_test(bytes_before_tls_are_thrown_away),
        cmocka_unit_test(what_cannot_pass_is_not_begun),
        cmocka_unit_test(an_address_cannot_smuggle_a_command),
        cmocka_unit_test(parameters_are_sent_when_needed),
        cmocka_unit_test(dots_are_doubled_at_the_start_of_lines_only),
        cmocka_unit_test(large_content_waits_for_the_stream),
        cmocka_unit_test(lost_inside_the_content_is_transient),
        cmocka_unit_test(a_failing_write_ends_the_session),
        cmocka_unit_test(the_server_has_the_times_of_the_rfc),
        cmocka_unit_test(replies_are_bounded),
        cmocka_unit_test(replies_are_joined),
        cmocka_unit_test(quit_before_the_sign_in_just_ends),
        cmocka_unit_test(quit_waits_for_the_running_transaction),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
