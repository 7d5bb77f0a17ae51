/* What a collection says about itself, and the mail it becomes. */
#include "gateway/digest_mail.h"

#include "gateway/mime.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#define ONE                                                                                            \
    "From: Nagios <nagios@contoso.com>\r\nTo: ops@contoso.com\r\nSubject: Disk =?utf-8?q?=C3=A4?=\r\n" \
    "Message-ID: <1@contoso.com>\r\n\r\nFirst.\r\n"
#define TWO                                                                      \
    "From: nagios@contoso.com\r\nTo: other@contoso.com\r\nSubject: Disk two\r\n" \
    "Content-Type: text/html\r\n\r\n<p>Second \xc3\xa4</p>\r\n"

static struct arena arena;
static struct buf out;

static int setup(void **state)
{
    (void)state;
    arena_init(&arena, (size_t)16 << 20);
    buf_init(&out, (size_t)4 << 20);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    arena_release(&arena);
    buf_release(&out);
    return 0;
}

static void test_about(void **state)
{
    (void)state;
    const struct span to[] = {SPAN_LIT("a@x"), SPAN_LIT("b@x")};
    struct digest_about about = {
        .client = SPAN_LIT("zabbix"),
        .lane = SPAN_LIT("alert"),
        .key = SPAN_LIT("digest:1"),
        .reverse_path = SPAN_LIT(""),
        .smtputf8 = true,
        .recipients = to,
        .recipient_count = 2,
    };
    struct digest_about back;
    assert_int_equal(digest_about_write(&about, &out), 0);
    assert_int_equal(digest_about_read(buf_span(&out), &arena, &back), 0);
    assert_true(span_eq(back.client, about.client) && span_eq(back.lane, about.lane));
    assert_true(span_eq(back.key, about.key) && back.reverse_path.len == 0 && back.smtputf8);
    assert_int_equal(back.recipient_count, 2);
    assert_true(span_eq(back.recipients[1], to[1]));
    /* Cut at every byte it is refused, or has fewer recipients; never more is read than there is.
     */
    for (size_t len = 0; len < buf_len(&out); len++) {
        struct span cut = span_make(buf_span(&out).data, len);
        if (digest_about_read(cut, &arena, &back) == 0) {
            assert_int_equal(back.recipient_count, len <= buf_len(&out) - 4 ? 1 : 2);
        }
    }
    assert_int_equal(digest_about_read(SPAN_LIT("2\na\nb\nc\nd\n7\nx\n"), &arena, &back),
                     ERR_INVAL);
    about.client = SPAN_LIT("zab\nbix");
    assert_int_equal(digest_about_write(&about, &out), ERR_INVAL);
}

static int compose(const struct digest_message *messages, size_t count, struct digest_mail *facts)
{
    struct err err;
    struct digest digest = {.id = SPAN_LIT("ID"), .messages = messages, .count = count};
    return digest_mail_compose(&digest, SPAN_LIT("cron@contoso.com"), "gw.test", 1700000000000,
                               &arena, &out, facts, &err);
}

static void test_one_stays_as_it_is(void **state)
{
    (void)state;
    const struct digest_message messages[] = {{SPAN_LIT(ONE), 1}};
    struct digest_mail facts;
    assert_int_equal(compose(messages, 1, &facts), 0);
    assert_true(span_eq(buf_span(&out), SPAN_LIT(ONE)));
    assert_true(span_eq(facts.message_id, SPAN_LIT("<1@contoso.com>")));
    assert_true(span_eq(facts.from, SPAN_LIT("nagios@contoso.com")));
}

static void test_several(void **state)
{
    (void)state;
    const struct digest_message messages[] = {
        {SPAN_LIT(ONE), 1700000000000},
        {SPAN_LIT(TWO), 1700000060000},
    };
    struct digest_mail facts;
    struct mail_view view;
    struct err err;
    assert_int_equal(compose(messages, 2, &facts), 0);
    assert_int_equal(mime_read(buf_span(&out), &arena, &view, &err), 0);
    assert_true(span_eq(view.subject, SPAN_LIT("Digest of 2: Disk \xc3\xa4")));
    assert_true(span_eq(view.from.address, SPAN_LIT("nagios@contoso.com")));
    assert_true(span_eq(view.to[0].address, SPAN_LIT("ops@contoso.com")));
    assert_true(span_eq(view.message_id, SPAN_LIT("<ID@gw.test>")));
    assert_true(span_eq(facts.message_id, view.message_id));
    const char *const expected[] = {
        "2023-11-14T22:13:20", "2023-11-14T22:14:20", "First.", "Disk \xc3\xa4", "Disk two",
        "see the attachment"};
    for (size_t i = 0; i < sizeof expected / sizeof expected[0]; i++) {
        assert_true(span_search(view.text, span_of(expected[i])) < view.text.len);
    }
    assert_int_equal(view.attachment_count, 2);
    assert_true(span_eq(view.attachments[1].content, SPAN_LIT(TWO)));
}

/* What was accepted is sent, whatever its header looks like: cron's addresses, and a message that
 * is too much to be read. */
static void test_headers_that_cannot_be_written_again(void **state)
{
    (void)state;
    struct digest_message messages[] = {
        {SPAN_LIT("From: root (Cron Daemon)\r\nTo: root, ops@contoso.com\r\nCc: all\r\n"
                  "Reply-To: root\r\nSubject: one\r\n\r\nFirst.\r\n"),
         1700000000000},
        {SPAN_LIT(TWO), 1700000060000},
    };
    struct digest_mail facts;
    struct mail_view view;
    struct err err;
    assert_int_equal(compose(messages, 2, &facts), 0);
    assert_int_equal(mime_read(buf_span(&out), &arena, &view, &err), 0);
    assert_true(span_eq(view.from.address, SPAN_LIT("cron@contoso.com")));
    assert_int_equal(view.to_count, 1);
    assert_true(span_eq(view.to[0].address, SPAN_LIT("ops@contoso.com")));
    assert_int_equal(view.cc_count + view.reply_to_count, 0);
    assert_int_equal(view.attachment_count, 2);

    struct buf many;
    buf_init(&many, 65536);
    for (size_t i = 0; i <= MIME_HEADERS_MAX; i++) {
        assert_int_equal(buf_append(&many, SPAN_LIT("X-Many: a\r\n")), 0);
    }
    assert_int_equal(buf_append(&many, SPAN_LIT("\r\nbody\r\n")), 0);
    messages[0].bytes = buf_span(&many);
    assert_int_not_equal(mime_read(messages[0].bytes, &arena, &view, &err), 0);
    buf_reset(&out);
    assert_int_equal(compose(messages, 2, &facts), 0);
    assert_int_equal(mime_read(buf_span(&out), &arena, &view, &err), 0);
    assert_true(span_eq(view.from.address, SPAN_LIT("cron@contoso.com")));
    assert_true(span_eq(view.attachments[0].content, buf_span(&many)));
    buf_release(&many);
}

static void test_nothing(void **state)
{
    (void)state;
    struct digest_mail facts;
    assert_int_equal(compose(NULL, 0, &facts), ERR_INVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_about, setup, teardown),
        cmocka_unit_test_setup_teardown(test_one_stays_as_it_is, setup, teardown),
        cmocka_unit_test_setup_teardown(test_several, setup, teardown),
        cmocka_unit_test_setup_teardown(test_headers_that_cannot_be_written_again, setup, teardown),
        cmocka_unit_test_setup_teardown(test_nothing, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
