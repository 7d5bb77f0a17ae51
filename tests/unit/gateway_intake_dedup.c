/* What makes a message a repeat. */
#include "gateway/intake_dedup.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

struct sample {
    const char *sender;
    const char *recipients[3];
    const char *subject;
    const char *key;
    bool ignore_digits;
};

static bool window_of(const struct sample *sample, char room[DEDUP_KEY_MAX + 1],
                      struct dedup_window *out)
{
    struct policy_client_conf client = {
        .name = "zabbix",
        .dedup =
            {
                .mode = POLICY_DEDUP_SIMPLE,
                .window_ms = 1000,
                .limit = 7,
                .ignore_digits = sample->ignore_digits,
            },
    };
    struct span recipients[3];
    struct intake_dedup message = {
        .sender = span_of(sample->sender),
        .recipients = recipients,
        .given_key = span_of(sample->key != NULL ? sample->key : ""),
        .subject = span_of(sample->subject),
    };
    while (message.recipient_count < 3 && sample->recipients[message.recipient_count] != NULL) {
        recipients[message.recipient_count] = span_of(sample->recipients[message.recipient_count]);
        message.recipient_count++;
    }
    return intake_dedup_window(&client, &message, room, out);
}

static bool same(const struct sample *a, const struct sample *b)
{
    char rooms[2][DEDUP_KEY_MAX + 1];
    struct dedup_window windows[2];
    assert_true(window_of(a, rooms[0], &windows[0]));
    assert_true(window_of(b, rooms[1], &windows[1]));
    return span_eq(windows[0].key, windows[1].key);
}

static void test_what_counts(void **state)
{
    (void)state;
    static const struct {
        struct sample a, b;
        bool same;
    } rows[] = {
        {{"a@x", {"b@x"}, "Disk full", NULL, false},
         {"a@x", {"b@x"}, "Disk full", NULL, false},
         true},
        {{"a@x", {"b@x"}, "Disk full", NULL, false},
         {"A@X", {"B@x"}, " disk\r\n  FULL ", NULL, false},
         true},
        {{"a@x", {"b@x", "c@x"}, "s", NULL, false},
         {"a@x", {"c@x", "b@x"}, "s", NULL, false},
         true},
        {{"a@x", {"b@x"}, "s", NULL, false}, {"a@x", {"b@x", "b@x"}, "s", NULL, false}, false},
        {{"a@x", {"b@x"}, "s", NULL, false}, {"a@x", {"c@x"}, "s", NULL, false}, false},
        {{"a@x", {"b@x"}, "s", NULL, false}, {"c@x", {"b@x"}, "s", NULL, false}, false},
        {{"a@x", {"b@x"}, "s", NULL, false}, {"b@x", {"a@x"}, "s", NULL, false}, false},
        {{"a@x", {"b@x"}, "Disk 91%", NULL, false},
         {"a@x", {"b@x"}, "Disk 92%", NULL, false},
         false},
        {{"a@x", {"b@x"}, "Disk 9%", NULL, true}, {"a@x", {"b@x"}, "Disk 100%", NULL, true}, true},
        {{"a@x", {"b@x"}, "one", "k", false}, {"a@x", {"b@x"}, "two", "k", false}, true},
        {{"a@x", {"b@x"}, "same", "k", false}, {"a@x", {"b@x"}, "same", "l", false}, false},
        {{"a@x", {"b@x"}, "s", "k", false}, {"a@x", {"c@x"}, "s", "k", false}, false},
        {{"a@x", {"b@x"}, "", "disk full", false},
         {"a@x", {"b@x"}, "disk full", NULL, false},
         false},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        if (same(&rows[i].a, &rows[i].b) != rows[i].same) {
            fail_msg("row %zu", i);
        }
    }
}

static void test_what_is_in_none(void **state)
{
    (void)state;
    char room[DEDUP_KEY_MAX + 1];
    struct dedup_window window;
    struct sample nothing = {"a@x", {"b@x"}, " \r\n ", NULL, false};
    assert_false(window_of(&nothing, room, &window));
    struct sample digits = {"a@x", {"b@x"}, "42", NULL, true};
    assert_false(window_of(&digits, room, &window));
    struct policy_client_conf off = {.name = "erp"};
    struct intake_dedup message = {.sender = SPAN_LIT("a@x"), .subject = SPAN_LIT("s")};
    assert_false(intake_dedup_window(&off, &message, room, &window));
    off.dedup = (struct policy_dedup_conf){
        .mode = POLICY_DEDUP_THROTTLE, .window_ms = 5, .limit = 7};
    assert_true(intake_dedup_window(&off, &message, room, &window));
    assert_int_equal(window.limit, 7);
    assert_int_equal(window.window_ms, 5);
    off.dedup.mode = POLICY_DEDUP_SIMPLE;
    assert_true(intake_dedup_window(&off, &message, room, &window));
    assert_int_equal(window.limit, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_counts),
        cmocka_unit_test(test_what_is_in_none),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
