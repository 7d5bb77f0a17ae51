#include "gateway/base/clock.h"

#include "gateway/base/failpoint.h"

#include <stdio.h>
#include <time.h>

#define MS_PER_DAY INT64_C(86400000)

static const char month_names[12][4] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                        "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
static const char day_names[7][4] = {"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};

/* A civil date and time in UTC. */
struct civil {
    unsigned year;
    unsigned month; /* 1..12 */
    unsigned day;   /* 1..31 */
    unsigned weekday;
    unsigned hour;
    unsigned minute;
    unsigned second;
    unsigned ms;
};

static int64_t read_clock_us(clockid_t id)
{
    struct timespec now;
    ASSERT(clock_gettime(id, &now) == 0);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

int64_t clock_mono_ms(void)
{
    return read_clock_us(CLOCK_MONOTONIC) / 1000;
}

int64_t clock_mono_us(void)
{
    return read_clock_us(CLOCK_MONOTONIC);
}

int64_t clock_wall_ms(void)
{
    return read_clock_us(CLOCK_REALTIME) / 1000 + failpoint_clock_offset_ms();
}

/* Days since 1970-01-01 of a date in the proleptic Gregorian calendar. Years are counted from 1
 * March, so that the leap day is the last of its year; 400 years are 146,097 days. */
static int64_t days_of(unsigned year, unsigned month, unsigned day)
{
    int64_t y = (int64_t)year - (month <= 2 ? 1 : 0);
    int64_t era = (y >= 0 ? y : y - 399) / 400;
    int64_t year_of_era = y - era * 400;
    int64_t day_of_year = (153 * ((int64_t)month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
    int64_t day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    return era * 146097 + day_of_era - 719468;
}

/* The reverse of days_of(), and the time of day. Years are cut to four digits, all the written
 * forms have room for. */
static struct civil civil_of(int64_t wall_ms)
{
    int64_t days = wall_ms / MS_PER_DAY;
    int64_t rest = wall_ms % MS_PER_DAY;
    if (rest < 0) {
        rest += MS_PER_DAY;
        days--;
    }
    int64_t shifted = days + 719468;
    int64_t era = (shifted >= 0 ? shifted : shifted - 146096) / 146097;
    int64_t doe = shifted - era * 146097;
    int64_t yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365;
    int64_t doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    int64_t mp = (5 * doy + 2) / 153;
    int64_t month = mp < 10 ? mp + 3 : mp - 9;
    int64_t year = yoe + era * 400 + (month <= 2 ? 1 : 0);
    return (struct civil){
        .year = (unsigned)((year % 10000 + 10000) % 10000),
        .month = (unsigned)month,
        .day = (unsigned)(doy - (153 * mp + 2) / 5 + 1),
        .weekday = (unsigned)(((days + 4) % 7 + 7) % 7),
        .hour = (unsigned)(rest / 3600000),
        .minute = (unsigned)(rest / 60000 % 60),
        .second = (unsigned)(rest / 1000 % 60),
        .ms = (unsigned)(rest % 1000),
    };
}

/* Both mail and HTTP write dates this way; they differ in the zone's name. */
static void write_named(int64_t wall_ms, const char *zone, char out[CLOCK_TEXT_MAX])
{
    struct civil c = civil_of(wall_ms);
    (void)snprintf(out, CLOCK_TEXT_MAX, "%s, %02u %s %04u %02u:%02u:%02u %s", day_names[c.weekday],
                   c.day % 100, month_names[c.month - 1], c.year % 10000, c.hour % 100,
                   c.minute % 100, c.second % 100, zone);
}

void clock_rfc5322(int64_t wall_ms, char out[CLOCK_TEXT_MAX])
{
    write_named(wall_ms, "+0000", out);
}

void clock_http(int64_t wall_ms, char out[CLOCK_TEXT_MAX])
{
    write_named(wall_ms, "GMT", out);
}

void clock_rfc3339(int64_t wall_ms, char out[CLOCK_TEXT_MAX])
{
    struct civil c = civil_of(wall_ms);
    (void)snprintf(out, CLOCK_TEXT_MAX, "%04u-%02u-%02uT%02u:%02u:%02u.%03uZ", c.year % 10000,
                   c.month % 100, c.day % 100, c.hour % 100, c.minute % 100, c.second % 100,
                   c.ms % 1000);
}

/* ---- Reading ---- */

static bool take_digits(struct span *in, size_t count, unsigned *out_value)
{
    if (in->len < count) {
        return false;
    }
    uint64_t value = 0;
    if (span_to_u64(span_make(in->data, count), 9999, &value) != ERR_OK) {
        return false;
    }
    in->data += count;
    in->len -= count;
    *out_value = (unsigned)value;
    return true;
}

static bool take_text(struct span *in, struct span text)
{
    if (!span_istarts(*in, text)) {
        return false;
    }
    in->data += text.len;
    in->len -= text.len;
    return true;
}

static bool take_name(struct span *in, const char (*names)[4], unsigned count, unsigned *out_index)
{
    for (unsigned i = 0; i < count; i++) {
        struct span name = span_of(names[i]);
        if (span_starts(*in, name)) {
            *out_index = i;
            return take_text(in, name);
        }
    }
    return false;
}

static bool take_time(struct span *in, struct civil *c)
{
    return take_digits(in, 2, &c->hour) && take_text(in, SPAN_LIT(":")) &&
           take_digits(in, 2, &c->minute) && take_text(in, SPAN_LIT(":")) &&
           take_digits(in, 2, &c->second);
}

static bool is_leap(unsigned year)
{
    return (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
}

/* Range checks, then milliseconds. A leap second (60) counts as the second after it, as POSIX time
 * does. */
static int to_ms(const struct civil *c, int64_t *out_ms)
{
    static const unsigned char month_days[12] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    if (c->month < 1 || c->month > 12 || c->hour > 23 || c->minute > 59 || c->second > 60) {
        return ERR_INVAL;
    }
    unsigned last = month_days[c->month - 1] + (c->month == 2 && is_leap(c->year) ? 1U : 0U);
    if (c->day < 1 || c->day > last) {
        return ERR_INVAL;
    }
    int64_t seconds = (int64_t)c->hour * 3600 + (int64_t)c->minute * 60 + c->second;
    *out_ms = days_of(c->year, c->month, c->day) * MS_PER_DAY + seconds * 1000 + c->ms;
    return ERR_OK;
}

/* Fraction digits; those after the third are read and dropped. */
static bool take_fraction(struct span *in, unsigned *out_ms)
{
    unsigned ms = 0;
    size_t count = 0;
    while (count < in->len && in->data[count] >= '0' && in->data[count] <= '9') {
        if (count < 3) {
            ms = ms * 10 + (unsigned)(in->data[count] - '0');
        }
        count++;
    }
    for (size_t i = count; i < 3; i++) {
        ms *= 10;
    }
    in->data += count;
    in->len -= count;
    *out_ms = ms;
    return count > 0;
}

/* "Z" or "+hh:mm" or "-hh:mm". */
static bool take_offset(struct span *in, int64_t *out_minutes)
{
    if (take_text(in, SPAN_LIT("Z"))) {
        *out_minutes = 0;
        return true;
    }
    bool west = span_starts(*in, SPAN_LIT("-"));
    if (!west && !span_starts(*in, SPAN_LIT("+"))) {
        return false;
    }
    in->data++;
    in->len--;
    unsigned hours = 0;
    unsigned minutes = 0;
    if (!take_digits(in, 2, &hours) || !take_text(in, SPAN_LIT(":")) ||
        !take_digits(in, 2, &minutes) || hours > 23 || minutes > 59) {
        return false;
    }
    int64_t total = (int64_t)hours * 60 + minutes;
    *out_minutes = west ? -total : total;
    return true;
}

int clock_parse_rfc3339(struct span text, int64_t *out_wall_ms)
{
    struct civil c = {.ms = 0};
    if (!take_digits(&text, 4, &c.year) || !take_text(&text, SPAN_LIT("-")) ||
        !take_digits(&text, 2, &c.month) || !take_text(&text, SPAN_LIT("-")) ||
        !take_digits(&text, 2, &c.day) || !take_text(&text, SPAN_LIT("T")) ||
        !take_time(&text, &c)) {
        return ERR_INVAL;
    }
    if (take_text(&text, SPAN_LIT(".")) && !take_fraction(&text, &c.ms)) {
        return ERR_INVAL;
    }
    int64_t offset_minutes = 0;
    if (!take_offset(&text, &offset_minutes) || text.len != 0) {
        return ERR_INVAL;
    }
    int64_t ms = 0;
    int rc = to_ms(&c, &ms);
    if (rc == ERR_OK) {
        *out_wall_ms = ms - offset_minutes * 60000;
    }
    return rc;
}

int clock_parse_http(struct span text, int64_t *out_wall_ms)
{
    struct civil c = {.ms = 0};
    unsigned month = 0;
    if (!take_name(&text, day_names, 7, &c.weekday) || !take_text(&text, SPAN_LIT(", ")) ||
        !take_digits(&text, 2, &c.day) || !take_text(&text, SPAN_LIT(" ")) ||
        !take_name(&text, month_names, 12, &month) || !take_text(&text, SPAN_LIT(" ")) ||
        !take_digits(&text, 4, &c.year) || !take_text(&text, SPAN_LIT(" ")) ||
        !take_time(&text, &c) || !span_eq(text, SPAN_LIT(" GMT"))) {
        return ERR_INVAL;
    }
    c.month = month + 1;
    return to_ms(&c, out_wall_ms);
}
