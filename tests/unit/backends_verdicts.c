/* Unit tests of backends/verdicts: every row of the SMTP table by its own example, and the classes
 * by hand. */
#include "backends/verdicts.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static void split_example(const char *example, uint32_t *out_code, struct span *out_text)
{
    struct span rest = span_of(example);
    uint64_t code = 0;
    assert_int_equal(span_to_u64(span_cut(&rest, ' '), 599, &code), 0);
    *out_code = (uint32_t)code;
    *out_text = rest;
}

/* A row that an earlier one hides for all of its phases or kinds can never speak: each must be
 * found by its example in every phase and kind it names. */
static void every_row_is_found_by_its_example(void **state)
{
    (void)state;
    for (size_t i = 0; i < verdict_smtp_row_count; i++) {
        const struct verdict_smtp_row *row = &verdict_smtp_rows[i];
        uint32_t code = 0;
        struct span text;
        split_example(row->example, &code, &text);
        size_t found = 0;
        for (unsigned phase = PHASE_CONNECT; phase <= PHASE_DOT; phase <<= 1) {
            for (unsigned kind = KIND_HVE; kind <= KIND_RELAY; kind <<= 1) {
                if ((row->phases & phase) == 0 || (row->kinds & kind) == 0) {
                    continue;
                }
                found++;
                if (verdict_smtp_find((enum verdict_kind)kind, (enum verdict_phase)phase, code,
                                      text) != row) {
                    fail_msg("row %zu is hidden from \"%s\"", i, row->example);
                }
            }
        }
        assert_true(found > 0);
    }
}

static void every_row_says_where_it_comes_from(void **state)
{
    (void)state;
    for (size_t i = 0; i < verdict_smtp_row_count; i++) {
        const struct verdict_smtp_row *row = &verdict_smtp_rows[i];
        assert_non_null(row->source);
        bool needs_remedy = row->verdict == VERDICT_CONFIG ||
                            row->verdict == VERDICT_ACCOUNT_BLOCKED;
        if (needs_remedy && row->remedy == NULL) {
            fail_msg("\"%s\" stops an account and names no remedy", row->example);
        }
        if (row->verdict == VERDICT_ACCOUNT_BLOCKED || row->verdict == VERDICT_THROTTLED) {
            assert_true(row->scope != SCOPE_NONE);
            assert_true(row->wait_ms > 0);
        }
        assert_true(row->remedy == NULL || span_ends(span_of(row->remedy), SPAN_LIT(".")));
    }
}

struct want {
    enum verdict_kind kind;
    enum verdict_phase phase;
    const char *reply;
    enum verdict verdict;
    enum verdict_scope scope;
};

static void check(const struct want *want)
{
    uint32_t code = 0;
    struct span text;
    split_example(want->reply, &code, &text);
    struct answer answer;
    verdict_smtp_answer(want->kind, want->phase, code, text, &answer);
    if (answer.verdict != want->verdict || answer.scope != want->scope) {
        fail_msg("\"%s\" is verdict %d scope %d, not %d %d", want->reply, (int)answer.verdict,
                 (int)answer.scope, (int)want->verdict, (int)want->scope);
    }
    assert_string_equal(answer.text, want->reply);
    assert_int_equal(answer.code, code);
}

/* The replies of services.md 1.4, 5.3, 5.4 and 5.5 in the words found there. */
static void replies_of_the_fact_sheet(void **state)
{
    (void)state;
    static const struct want wants[] = {
        {KIND_HVE, PHASE_AUTH, "535 5.7.3 Authentication unsuccessful", VERDICT_CONFIG,
         SCOPE_ACCOUNT},
        {KIND_HVE, PHASE_AUTH,
         "535 5.7.139 Authentication unsuccessful, the organization configuration doesn't allow this "
         "authentication request.",
         VERDICT_CONFIG, SCOPE_ACCOUNT},
        {KIND_HVE, PHASE_AUTH, "501 5.5.121 Invalid XOAUTH2 argument", VERDICT_CONFIG,
         SCOPE_ACCOUNT},
        {KIND_HVE, PHASE_AUTH, "501 5.5.126 invalid auth data format", VERDICT_CONFIG,
         SCOPE_ACCOUNT},
        {KIND_HVE, PHASE_AUTH,
         "501 5.5.127 Invalid XOAUTH2 auth data - Token will expire soon error", VERDICT_REFRESH,
         SCOPE_ACCOUNT},
        {KIND_HVE, PHASE_AUTH, "535 5.7.142 Token will expire soon", VERDICT_REFRESH,
         SCOPE_ACCOUNT},
        {KIND_HVE, PHASE_AUTH, "535 5.7.143 Expired token", VERDICT_REFRESH, SCOPE_ACCOUNT},
        {KIND_HVE, PHASE_MAIL, "550 5.7.62 x", VERDICT_CONFIG, SCOPE_ACCOUNT},
        {KIND_HVE, PHASE_DOT, "550 5.6.241 x", VERDICT_MESSAGE_PERMANENT, SCOPE_NONE},
        {KIND_HVE, PHASE_MAIL, "550 5.2.240 x", VERDICT_CONFIG, SCOPE_ACCOUNT},
        {KIND_HVE, PHASE_RCPT, "550 5.7.1 external", VERDICT_RECIPIENT_PERMANENT, SCOPE_NONE},
        {KIND_HVE, PHASE_RCPT, "452 4.5.3 Too many recipients", VERDICT_TRANSIENT, SCOPE_NONE},
        {KIND_HVE, PHASE_DOT, "552 5.3.4 Message size exceeds fixed maximum message size",
         VERDICT_MESSAGE_PERMANENT, SCOPE_NONE},
        {KIND_RELAY, PHASE_DATA,
         "432 4.3.2 Concurrent connections limit exceeded. Visit https://aka.ms/concurrent_sending for "
         "more information. [Hostname=OS0PR01MB6099.jpnprd01.prod.outlook.com]",
         VERDICT_THROTTLED, SCOPE_ACCOUNT},
        {KIND_RELAY, PHASE_DOT, "432 4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded",
         VERDICT_THROTTLED, SCOPE_ACCOUNT},
        {KIND_RELAY, PHASE_DOT, "432 4.3.2 STOREDRV.Deliver; recipient thread limit exceeded",
         VERDICT_TRANSIENT, SCOPE_NONE},
        {KIND_RELAY, PHASE_DOT,
         "554 5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException",
         VERDICT_THROTTLED, SCOPE_ACCOUNT},
        {KIND_RELAY, PHASE_DOT,
         "554 5.2.2 mailbox full; STOREDRV.Submission.Exception:QuotaExceededException."
         "MapiExceptionShutoffQuotaExceeded",
         VERDICT_ACCOUNT_BLOCKED, SCOPE_ACCOUNT},
        {KIND_RELAY, PHASE_MAIL,
         "550 5.2.252 Sender throttled due to continuous send as denied errors.",
         VERDICT_ACCOUNT_BLOCKED, SCOPE_ACCOUNT},
        {KIND_RELAY, PHASE_MAIL,
         "550 5.2.255 Sender throttled due to continuous invalid recipients errors.",
         VERDICT_ACCOUNT_BLOCKED, SCOPE_ACCOUNT},
        /* The same enhanced code, told apart by 554 and its text. */
        {KIND_RELAY, PHASE_DOT,
         "554 5.2.252 SendAsDenied; a@b not allowed to send as c@d; STOREDRV.Submission.Exception:"
         "SendAsDeniedException.MapiExceptionSendAsDenied; ...",
         VERDICT_CONFIG, SCOPE_NONE},
        {KIND_RELAY, PHASE_AUTH,
         "550 5.7.30 Basic authentication is not supported for Client Submission.", VERDICT_CONFIG,
         SCOPE_ACCOUNT},
        {KIND_RELAY, PHASE_MAIL, "550 5.7.57 Client was not authenticated", VERDICT_CONFIG,
         SCOPE_ACCOUNT},
        {KIND_RELAY, PHASE_MAIL,
         "550 5.7.60 SMTP; Client does not have permissions to send as this sender", VERDICT_CONFIG,
         SCOPE_NONE},
        {KIND_RELAY, PHASE_DOT, "554 5.2.0 STOREDRV.Submission.Exception:OutboundSpamException; x",
         VERDICT_ACCOUNT_BLOCKED, SCOPE_ACCOUNT},
        {KIND_RELAY, PHASE_MAIL, "550 5.1.8 Access denied, bad outbound sender x",
         VERDICT_ACCOUNT_BLOCKED, SCOPE_ACCOUNT},
        {KIND_RELAY, PHASE_DOT, "550 5.7.705 Access denied", VERDICT_ACCOUNT_BLOCKED, SCOPE_TENANT},
        {KIND_RELAY, PHASE_DOT,
         "550 5.7.232 - Your message can't be sent because your trial tenant has exceeded its daily "
         "limit for sending email to external recipients (tenant external recipient rate limit)",
         VERDICT_THROTTLED, SCOPE_TENANT},
        {KIND_RELAY, PHASE_DATA, "451 4.7.500 Server busy. Please try again later from [ip].",
         VERDICT_TRANSIENT, SCOPE_NONE},
        {KIND_RELAY, PHASE_RCPT, "550 5.2.121 x", VERDICT_TRANSIENT, SCOPE_NONE},
        {KIND_RELAY, PHASE_MAIL, "550 5.7.64 TenantAttribution; Relay Access Denied",
         VERDICT_CONFIG, SCOPE_BACKEND},
        {KIND_RELAY, PHASE_RCPT, "550 5.7.1 Unable to relay", VERDICT_RECIPIENT_PERMANENT,
         SCOPE_NONE},
        {KIND_RELAY, PHASE_RCPT, "550 5.4.1 Recipient address rejected: Access denied",
         VERDICT_RECIPIENT_PERMANENT, SCOPE_NONE},
        {KIND_RELAY, PHASE_CONNECT, "501 5.5.4 Invalid domain name", VERDICT_CONFIG, SCOPE_BACKEND},
        {KIND_RELAY, PHASE_MAIL, "550 5.1.7 Invalid address", VERDICT_MESSAGE_PERMANENT,
         SCOPE_NONE},
    };
    for (size_t i = 0; i < sizeof wants / sizeof *wants; i++) {
        check(&wants[i]);
    }
}

static void unknown_replies_fall_to_their_class(void **state)
{
    (void)state;
    static const struct want wants[] = {
        {KIND_RELAY, PHASE_DOT, "250 queued", VERDICT_DELIVERED, SCOPE_NONE},
        {KIND_RELAY, PHASE_RCPT, "450 4.2.0 greylisted", VERDICT_TRANSIENT, SCOPE_NONE},
        {KIND_RELAY, PHASE_AUTH, "454 4.7.0 Temporary authentication failure", VERDICT_TRANSIENT,
         SCOPE_NONE},
        {KIND_HVE, PHASE_RCPT, "599 9.9.9 never seen", VERDICT_RECIPIENT_PERMANENT, SCOPE_NONE},
        {KIND_HVE, PHASE_MAIL, "599 never seen", VERDICT_MESSAGE_PERMANENT, SCOPE_NONE},
        {KIND_HVE, PHASE_DATA, "599 never seen", VERDICT_MESSAGE_PERMANENT, SCOPE_NONE},
        {KIND_HVE, PHASE_DOT, "599 never seen", VERDICT_MESSAGE_PERMANENT, SCOPE_NONE},
        {KIND_HVE, PHASE_AUTH, "599 never seen", VERDICT_CONFIG, SCOPE_ACCOUNT},
        {KIND_HVE, PHASE_CONNECT, "599 never seen", VERDICT_TRANSIENT, SCOPE_NONE},
        {KIND_HVE, PHASE_DATA, "354 go", VERDICT_TRANSIENT, SCOPE_NONE},
        /* Not an enhanced code, and one that only begins like a row's. */
        {KIND_RELAY, PHASE_DOT, "550 5.7.301 other", VERDICT_MESSAGE_PERMANENT, SCOPE_NONE},
        {KIND_RELAY, PHASE_DOT, "550 see 5.7.30", VERDICT_MESSAGE_PERMANENT, SCOPE_NONE},
        {KIND_RELAY, PHASE_DOT, "550 ", VERDICT_MESSAGE_PERMANENT, SCOPE_NONE},
    };
    for (size_t i = 0; i < sizeof wants / sizeof *wants; i++) {
        check(&wants[i]);
    }
}

static void long_texts_are_cut(void **state)
{
    (void)state;
    char text[1000];
    memset(text, 'x', sizeof text);
    struct answer answer;
    verdict_smtp_answer(KIND_HVE, PHASE_DOT, 550, span_make(text, sizeof text), &answer);
    assert_int_equal(strlen(answer.text), sizeof answer.text - 1);
    verdict_own_answer(VERDICT_UNKNOWN, "lost", &answer);
    assert_string_equal(answer.text, "lost");
    assert_int_equal(answer.code, 0);
    assert_null(answer.remedy);
}

/* ---- The documentation ---- */

static void append_names(struct buf *line, unsigned set, const char *const *names, size_t count)
{
    const char *separator = "";
    for (size_t i = 0; i < count; i++) {
        if ((set & 1u << i) != 0) {
            assert_int_equal(buf_printf(line, "%s%s", separator, names[i]), 0);
            separator = " ";
        }
    }
}

/* A row as backends/README.md shows it. */
static void format_row(const struct verdict_smtp_row *row, struct buf *line)
{
    static const char *const phases[] = {"connect", "auth", "mail", "rcpt", "data", "dot"};
    static const char *const kinds[] = {"hve", "smtp"};
    static const char *const scopes[] = {"", " account", " backend", " tenant"};
    static const char *const verdicts[] = {"delivered",
                                           "recipient-permanent",
                                           "message-permanent",
                                           "throttled",
                                           "transient",
                                           "account-blocked",
                                           "config",
                                           "refresh",
                                           "unknown"};
    assert_int_equal(
        buf_printf(line, "| `%.80s%s` | ", row->example, strlen(row->example) > 80 ? "…" : ""), 0);
    if (row->phases == PHASE_ANY) {
        assert_int_equal(buf_printf(line, "any"), 0);
    } else {
        append_names(line, row->phases, phases, 6);
    }
    assert_int_equal(buf_printf(line, " | "), 0);
    append_names(line, row->kinds, kinds, 2);
    assert_int_equal(buf_printf(line, " | %s%s", verdicts[row->verdict], scopes[row->scope]), 0);
    if (row->wait_ms > 0) {
        assert_int_equal(buf_printf(line, " %lld s", (long long)(row->wait_ms / 1000)), 0);
    }
    assert_int_equal(buf_printf(line, " | %s |\n", row->source), 0);
}

static void read_file(const char *path, struct buf *out)
{
    FILE *file = fopen(path, "re");
    assert_non_null(file);
    char room[4096];
    for (size_t got = fread(room, 1, sizeof room, file); got > 0;
         got = fread(room, 1, sizeof room, file)) {
        assert_int_equal(buf_append(out, span_make(room, got)), 0);
    }
    (void)fclose(file); /* only read */
}

/* Prints what is missing, ready to be pasted. */
static void the_readme_shows_every_row(void **state)
{
    (void)state;
    struct buf readme;
    buf_init(&readme, 1 << 20);
    read_file(HEAVE_SOURCE_DIR "/backends/README.md", &readme);
    size_t missing = 0;
    for (size_t i = 0; i < verdict_smtp_row_count; i++) {
        struct buf line;
        buf_init(&line, 4096);
        format_row(&verdict_smtp_rows[i], &line);
        if (span_search(buf_span(&readme), buf_span(&line)) == buf_len(&readme)) {
            (void)fprintf(stderr, "%.*s", SPAN_FMT(buf_span(&line)));
            missing++;
        }
        buf_release(&line);
    }
    buf_release(&readme);
    assert_int_equal(missing, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_row_is_found_by_its_example),
        cmocka_unit_test(every_row_says_where_it_comes_from),
        cmocka_unit_test(replies_of_the_fact_sheet),
        cmocka_unit_test(unknown_replies_fall_to_their_class),
        cmocka_unit_test(long_texts_are_cut),
        cmocka_unit_test(the_readme_shows_every_row),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
