/* Unit tests of backends/smtp_client and smtp_reply: setting up a session, what never leaves,
 * content, patience and bounds. */
#include "backends/smtp_client.h"
#include "backends/smtp_reply.h"

#include "tests/lib/smtp_rig.h"

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
