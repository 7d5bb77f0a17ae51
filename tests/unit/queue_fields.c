/* Unit tests of queue/fields: header fields, address lists, encoded words. */
#include "queue/fields.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

static void assert_span(struct span got, const char *want)
{
    if (!span_eq(got, span_of(want))) {
        fail_msg("got \"%.*s\", want \"%s\"", SPAN_FMT(got), want);
    }
}

static void split_takes_folded_fields_and_leaves_the_body(void **state)
{
    (void)state;
    struct span header;
    struct span rest;
    fields_split(SPAN_LIT("A: 1\r\nB: x\r\n\ty\r\n z\r\n\r\nbody: no\r\n"), &header, &rest);
    assert_span(header, "A: 1\r\nB: x\r\n\ty\r\n z\r\n");
    assert_span(rest, "\r\nbody: no\r\n");

    struct field field;
    assert_true(fields_next(&header, &field));
    assert_span(field.name, "A");
    assert_span(field.value, " 1");
    assert_true(fields_next(&header, &field));
    assert_span(field.whole, "B: x\r\n\ty\r\n z\r\n");
    assert_span(field.value, " x\r\n\ty\r\n z");
    assert_false(fields_next(&header, &field));
    assert_int_equal(header.len, 0);
}

static void split_ends_at_a_line_that_is_no_field(void **state)
{
    (void)state;
    static const struct {
        const char *message;
        const char *header;
        const char *rest;
    } rows[] = {
        {"", "", ""},
        {"\r\nbody", "", "\r\nbody"},
        {"no field\r\nA: 1\r\n", "", "no field\r\nA: 1\r\n"},
        {"A: 1\r\nbroken line\r\nB: 2\r\n", "A: 1\r\n", "broken line\r\nB: 2\r\n"},
        {"A: 1", "A: 1", ""},
        {"A : 1\r\n\r\n", "A : 1\r\n", "\r\n"},
        {" folded first\r\nA: 1\r\n", "", " folded first\r\nA: 1\r\n"},
        {": no name\r\n", "", ": no name\r\n"},
        {"A: 1\nB: 2\n\nx", "A: 1\nB: 2\n", "\nx"},
        {"A:\r\n\r\n", "A:\r\n", "\r\n"},
        {"Caf\xc3\xa9: 1\r\n", "", "Caf\xc3\xa9: 1\r\n"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct span header;
        struct span rest;
        fields_split(span_of(rows[i].message), &header, &rest);
        assert_span(header, rows[i].header);
        assert_span(rest, rows[i].rest);
    }
}

static void find_and_count_ignore_case(void **state)
{
    (void)state;
    struct span header = SPAN_LIT("To: a\r\nsubject: one\r\nSUBJECT: two\r\nTo-Do: x\r\n");
    struct field field;
    assert_true(fields_find(header, SPAN_LIT("Subject"), &field));
    assert_span(field.value, " one");
    assert_int_equal(fields_count(header, SPAN_LIT("Subject")), 2);
    assert_int_equal(fields_count(header, SPAN_LIT("To")), 1);
    assert_false(fields_find(header, SPAN_LIT("Cc"), &field));
}

static void unfold_removes_line_ends_and_trims(void **state)
{
    (void)state;
    struct buf out;
    buf_init(&out, 100);
    assert_int_equal(fields_unfold(SPAN_LIT(" one\r\n two\r\n\tthree \r\n"), &out), 0);
    assert_span(buf_span(&out), "one two\tthree");
    buf_release(&out);
    buf_init(&out, 3);
    assert_int_equal(fields_unfold(SPAN_LIT("four"), &out), ERR_LIMIT);
    buf_release(&out);
}

static void copy_without_keeps_the_others_byte_for_byte(void **state)
{
    (void)state;
    static const char *const names[] = {"bcc", "X-Heave-*"};
    static const struct {
        const char *in;
        const char *out;
    } rows[] = {
        {"A: 1\r\nBcc: x\r\n y\r\nB:  2\r\nX-Heave-Lane: a\r\nx-heave-TAG: b\r\nX-Heav: c\r\n",
         "A: 1\r\nB:  2\r\nX-Heav: c\r\n"},
        {"Bcc: x\r\n", ""},
        {"Bcc: x\r\nBCC: y\r\nA: 1", "A: 1"},
        {"A: 1\r\nBccx: 2\r\n", "A: 1\r\nBccx: 2\r\n"},
        {"", ""},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct buf out;
        buf_init(&out, 1000);
        assert_int_equal(fields_copy_without(span_of(rows[i].in), names, 2, &out), 0);
        assert_span(buf_span(&out), rows[i].out);
        buf_release(&out);
    }
}

struct want_mailbox {
    const char *display;
    const char *address;
};

static void check_list(const char *text, const struct want_mailbox *want, size_t count)
{
    struct arena arena;
    arena_init(&arena, 10000);
    struct span list = span_of(text);
    struct mailbox mailbox;
    for (size_t i = 0; i < count; i++) {
        if (!mailbox_next(&list, &arena, &mailbox)) {
            fail_msg("\"%s\": mailbox %zu is missing", text, i);
        }
        assert_span(mailbox.display, want[i].display);
        assert_span(mailbox.address, want[i].address);
    }
    if (mailbox_next(&list, &arena, &mailbox)) {
        fail_msg("\"%s\": unexpected \"%.*s\"", text, SPAN_FMT(mailbox.address));
    }
    arena_release(&arena);
}

#define CHECK_LIST(text, ...)                                    \
    check_list(text, (const struct want_mailbox[]){__VA_ARGS__}, \
               sizeof((const struct want_mailbox[]){__VA_ARGS__}) / sizeof(struct want_mailbox))

static void mailboxes_of_every_form(void **state)
{
    (void)state;
    CHECK_LIST(" a@x.org\r\n", {"", "a@x.org"});
    CHECK_LIST("Ann Lee <a@x.org>, b@y.org", {"Ann Lee", "a@x.org"}, {"", "b@y.org"});
    CHECK_LIST("\"Lee, Ann; \\\"x\\\"\" <a@x.org>", {"\"Lee, Ann; \\\"x\\\"\"", "a@x.org"});
    CHECK_LIST("=?UTF-8?Q?M=C3=BCller?=\r\n =?UTF-8?Q?_KG?= <m@x.org>",
               {"=?UTF-8?Q?M=C3=BCller?=\r\n =?UTF-8?Q?_KG?=", "m@x.org"});
    CHECK_LIST("root@h (Cron (x) Daemon)", {"Cron (x) Daemon", "root@h"});
    CHECK_LIST("a (c, d) @ x . org", {"c, d", "a@x.org"});
    CHECK_LIST("\"q, r\"@x.org,<b@y.org>", {"", "\"q, r\"@x.org"}, {"", "b@y.org"});
    CHECK_LIST("Team: a@x.org, B <b@x.org>;, c@y.org", {"", "a@x.org"}, {"B", "b@x.org"},
               {"", "c@y.org"});
    CHECK_LIST("<@one,@two:a@x.org>", {"", "a@x.org"});
    CHECK_LIST("a@[IPv6:::1], b@[192.0.2.1]", {"", "a@[IPv6:::1]"}, {"", "b@[192.0.2.1]"});
    CHECK_LIST("root, , nobody, a@x.org,", {"", "a@x.org"});
    check_list("undisclosed-recipients:;", NULL, 0);
    check_list("", NULL, 0);
    check_list("\"never closed <a@x.org>", NULL, 0);
    check_list("@x.org, a@", NULL, 0);
}

static void mailbox_without_memory_is_passed_over(void **state)
{
    (void)state;
    struct arena arena;
    arena_init(&arena, 1);
    struct span list = SPAN_LIT("a(x)bcdefghijklmnopqrstuvw@x.org, b@y.org");
    struct mailbox mailbox;
    assert_true(mailbox_next(&list, &arena, &mailbox));
    assert_span(mailbox.address, "b@y.org");
    assert_span(mailbox.whole, "b@y.org");
    arena_release(&arena);
}

static void addresses_are_checked(void **state)
{
    (void)state;
    static const struct {
        const char *address;
        bool ascii;
        bool utf8;
    } rows[] = {
        {"a@x.org", true, true},
        {"first.last+tag@sub.x-y.org", true, true},
        {"root@localhost", true, true},
        {"scan@my_printer", true, true},
        {"\"quoted local\"@x.org", true, true},
        {"\"a\\\"b\"@x.org", true, true},
        {"a@[192.0.2.1]", true, true},
        {"a@[IPv6:2001:db8::1]", true, true},
        {"m\xc3\xbcller@x.org", false, true},
        {"a@m\xc3\xbcller.org", false, true},
        {"a@\xff.org", false, false},
        {"", false, false},
        {"a", false, false},
        {"@x.org", false, false},
        {"a@", false, false},
        {".a@x.org", false, false},
        {"a.@x.org", false, false},
        {"a..b@x.org", false, false},
        {"a b@x.org", false, false},
        {"a@x..org", false, false},
        {"a@.org", false, false},
        {"a@x.org.", false, false},
        {"a@-x.org", false, false},
        {"a@x-.org", false, false},
        {"a@b@x.org", false, false},
        {"a@[192.0.2]", false, false},
        {"a@[nonsense]", false, false},
        {"\"a\"b\"@x.org", false, false},
        {"\"\"@x.org", false, false},
        {"\"a\\\"@x.org", false, false},
        {"a\r\n@x.org", false, false},
        {"a@x.org\r\nRCPT TO:<b@x.org>", false, false},
        {"a>@x.org", false, false},
        {"a@x_\x01.org", false, false},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct span address = span_of(rows[i].address);
        if (address_valid(address, false) != rows[i].ascii ||
            address_valid(address, true) != rows[i].utf8) {
            fail_msg("\"%s\" is judged wrongly", rows[i].address);
        }
    }
}

static void address_lengths_are_limited(void **state)
{
    (void)state;
    char text[400];
    for (size_t local = 63; local <= 65; local++) {
        memset(text, 'a', local);
        memcpy(text + local, "@x.org", 7);
        assert_int_equal(address_valid(span_of(text), false), local <= 64);
    }
    for (size_t domain = 253; domain <= 257; domain++) {
        text[0] = 'a';
        text[1] = '@';
        for (size_t i = 0; i < domain; i++) {
            text[2 + i] = i % 50 == 49 && i + 1 < domain ? '.' : 'd';
        }
        assert_int_equal(address_valid(span_make(text, domain + 2), false), domain <= 255);
    }
    memset(text, 'd', sizeof text);
    memcpy(text, "a@", 2);
    assert_true(address_valid(span_make(text, 2 + 63), false));
    assert_false(address_valid(span_make(text, 2 + 64), false));
}

static void address_parts_and_sameness(void **state)
{
    (void)state;
    assert_span(address_domain(SPAN_LIT("\"a@b\"@x.org")), "x.org");
    assert_span(address_local(SPAN_LIT("\"a@b\"@x.org")), "\"a@b\"");
    assert_int_equal(address_domain(SPAN_LIT("root")).len, 0);
    assert_span(address_local(SPAN_LIT("root")), "root");
    assert_true(address_same(SPAN_LIT("A.B@X.org"), SPAN_LIT("a.b@x.ORG")));
    assert_false(address_same(SPAN_LIT("a@x.org"), SPAN_LIT("b@x.org")));
}

static void text_is_encoded_only_when_needed(void **state)
{
    (void)state;
    struct buf out;
    buf_init(&out, 5000);
    assert_int_equal(fields_encode_text(SPAN_LIT("Disk full on db01"), &out), 0);
    assert_span(buf_span(&out), "Disk full on db01");
    buf_reset(&out);
    assert_int_equal(fields_encode_text(SPAN_LIT("M\xc3\xbcller"), &out), 0);
    assert_span(buf_span(&out), "=?UTF-8?B?TcO8bGxlcg==?=");
    buf_reset(&out);
    /* What looks encoded and is not meant so; and a line end, which must never become a new field.
     */
    assert_int_equal(fields_encode_text(SPAN_LIT("=?x"), &out), 0);
    assert_span(buf_span(&out), "=?UTF-8?B?PT94?=");
    buf_reset(&out);
    assert_int_equal(fields_encode_text(SPAN_LIT("a\r\nBcc: b"), &out), 0);
    assert_span(buf_span(&out), "=?UTF-8?B?YQ0KQmNjOiBi?=");
    buf_reset(&out);
    assert_int_equal(fields_encode_text(SPAN_LIT("\xff"), &out), 0);
    assert_span(buf_span(&out), "=?UTF-8?B?Pw==?=");
    buf_release(&out);
}

static void long_text_is_folded_between_characters(void **state)
{
    (void)state;
    char text[301];
    for (size_t i = 0; i + 1 < sizeof text; i += 3) {
        memcpy(text + i, "\xe2\x82\xac", 4);
    }
    struct buf out;
    buf_init(&out, 5000);
    assert_int_equal(fields_encode_text(span_of(text), &out), 0);
    struct span rest = buf_span(&out);
    size_t lines = 0;
    while (rest.len > 0) {
        struct span line = span_cut(&rest, '\n');
        assert_true(line.len <= 78);
        assert_true(span_ends(span_trim(line), SPAN_LIT("?=")));
        lines++;
    }
    assert_int_equal(lines, 1 + (300 - 30) / 45);
    buf_release(&out);
    buf_init(&out, 20);
    assert_int_equal(fields_encode_text(span_of(text), &out), ERR_LIMIT);
    buf_release(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(split_takes_folded_fields_and_leaves_the_body),
        cmocka_unit_test(split_ends_at_a_line_that_is_no_field),
        cmocka_unit_test(find_and_count_ignore_case),
        cmocka_unit_test(unfold_removes_line_ends_and_trims),
        cmocka_unit_test(copy_without_keeps_the_others_byte_for_byte),
        cmocka_unit_test(mailboxes_of_every_form),
        cmocka_unit_test(mailbox_without_memory_is_passed_over),
        cmocka_unit_test(addresses_are_checked),
        cmocka_unit_test(address_lengths_are_limited),
        cmocka_unit_test(address_parts_and_sameness),
        cmocka_unit_test(text_is_encoded_only_when_needed),
        cmocka_unit_test(long_text_is_folded_between_characters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
