/* Dates written and read, over the Gregorian calendar's corners. */
#include "gateway/base/clock.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include <cmocka.h>

static void test_known(void **state)
{
    (void)state;
    char text[CLOCK_TEXT_MAX];
    clock_rfc5322(INT64_C(1795435200123), text);
    assert_string_equal(text, "Mon, 23 Nov 2026 12:00:00 +0000");
    clock_http(INT64_C(1795435200123), text);
    assert_string_equal(text, "Mon, 23 Nov 2026 12:00:00 GMT");
    clock_rfc3339(INT64_C(1795435200123), text);
    assert_string_equal(text, "2026-11-23T12:00:00.123Z");
    clock_rfc3339(0, text);
    assert_string_equal(text, "1970-01-01T00:00:00.000Z");
    clock_rfc3339(-1, text);
    assert_string_equal(text, "1969-12-31T23:59:59.999Z");
    clock_http(INT64_C(951782400000), text);
    assert_string_equal(text, "Tue, 29 Feb 2000 00:00:00 GMT");
    /* Values no calendar has must not overflow anything. */
    clock_rfc5322(INT64_MAX, text);
    clock_rfc5322(INT64_MIN, text);
}

/* Every day of four centuries and their leap years, against the C library. */
static void test_round_trip(void **state)
{
    (void)state;
    for (int64_t day = -25567; day < 120000; day++) {
        int64_t ms = day * 86400000 + (day % 86399 + 86399) % 86399 * 1000;
        char text[CLOCK_TEXT_MAX];
        int64_t back = 1;
        clock_rfc3339(ms + 7, text);
        assert_int_equal(clock_parse_rfc3339(span_of(text), &back), ERR_OK);
        assert_true(back == ms + 7);
        clock_http(ms, text);
        assert_int_equal(clock_parse_http(span_of(text), &back), ERR_OK);
        assert_true(back == ms);
        time_t seconds = (time_t)(ms / 1000);
        struct tm tm;
        char expected[CLOCK_TEXT_MAX];
        assert_non_null(gmtime_r(&seconds, &tm));
        assert_true(strftime(expected, sizeof(expected), "%a, %d %b %Y %H:%M:%S GMT", &tm) > 0);
        assert_string_equal(text, expected);
    }
}

static void check_3339(const char *text, const char *utc)
{
    int64_t ms = 0;
    char back[CLOCK_TEXT_MAX];
    assert_int_equal(clock_parse_rfc3339(span_of(text), &ms), ERR_OK);
    clock_rfc3339(ms, back);
    assert_string_equal(back, utc);
}

static void test_rfc3339(void **state)
{
    (void)state;
    check_3339("2026-11-23T12:00:00Z", "2026-11-23T12:00:00.000Z");
    check_3339("2026-11-23t12:00:00.5z", "2026-11-23T12:00:00.500Z");
    check_3339("2026-11-23T12:00:00.123456789+02:30", "2026-11-23T09:30:00.123Z");
    check_3339("2026-12-31T23:30:00-01:00", "2027-01-01T00:30:00.000Z");
    check_3339("2024-02-29T00:00:00Z", "2024-02-29T00:00:00.000Z");
    check_3339("2000-02-29T00:00:00-00:00", "2000-02-29T00:00:00.000Z");
    check_3339("2016-12-31T23:59:60Z", "2017-01-01T00:00:00.000Z");
    static const char *const bad[] = {
        "",
        "2026-11-23",
        "2026-11-23T12:00:00",
        "2026-11-23 12:00:00Z",
        "2026-13-01T00:00:00Z",
        "2026-00-01T00:00:00Z",
        "2026-02-29T00:00:00Z",
        "2100-02-29T00:00:00Z",
        "2026-04-31T00:00:00Z",
        "2026-04-00T00:00:00Z",
        "2026-11-23T24:00:00Z",
        "2026-11-23T12:60:00Z",
        "2026-11-23T12:00:61Z",
        "2026-11-23T12:00:00.Z",
        "2026-11-23T12:00:00+24:00",
        "2026-11-23T12:00:00+0200",
        "2026-11-23T12:00:00Zx",
        "20a6-11-23T12:00:00Z",
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        int64_t ms = 42;
        assert_int_equal(clock_parse_rfc3339(span_of(bad[i]), &ms), ERR_INVAL);
        assert_true(ms == 42);
    }
}

static void test_http(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "",
        "Mon, 23 Nov 2026 12:00:00",
        "Mon, 23 Nov 2026 12:00:00 UTC",
        "Mon, 23 Nov 2026 12:00:00 GMT ",
        "Mon 23 Nov 2026 12:00:00 GMT",
        "Xxx, 23 Nov 2026 12:00:00 GMT",
        "Mon, 23 Xxx 2026 12:00:00 GMT",
        "Mon, 31 Feb 2026 12:00:00 GMT",
        "Monday, 23-Nov-26 12:00:00 GMT",
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        int64_t ms = 42;
        assert_int_equal(clock_parse_http(span_of(bad[i]), &ms), ERR_INVAL);
        assert_true(ms == 42);
    }
}

static void test_clocks_advance(void **state)
{
    (void)state;
    int64_t us = clock_mono_us();
    while (clock_mono_us() == us) {
    }
    assert_true(clock_mono_us() > us);
    assert_true(clock_mono_ms() >= us / 1000);
    assert_true(clock_wall_ms() > INT64_C(1700000000000));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known),          cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_rfc3339),        cmocka_unit_test(test_http),
        cmocka_unit_test(test_clocks_advance),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
