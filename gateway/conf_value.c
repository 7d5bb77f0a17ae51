#include "gateway/conf_tree.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>

/* How single values are written: durations, sizes, rates, ladders. Pure. */

struct unit {
    const char *name;
    int64_t factor;
};

static const struct unit duration_units[] = {
    {"ms", 1}, {"s", 1000}, {"m", 60000}, {"h", 3600000}, {"d", 86400000},
};
static const struct unit size_units[] = {
    {"", 1},
    {"B", 1},
    {"kB", 1000},
    {"KB", 1000},
    {"MB", 1000 * 1000},
    {"GB", 1000 * 1000 * 1000},
    {"KiB", 1024},
    {"MiB", 1024 * 1024},
    {"GiB", 1024 * 1024 * 1024},
    {"TiB", INT64_C(1) << 40},
};

static const struct unit *unit_find(const struct unit *units, size_t count, struct span name)
{
    for (size_t i = 0; i < count; i++) {
        if (span_eq(span_of(units[i].name), name)) {
            return &units[i];
        }
    }
    return NULL;
}

static const struct unit *duration_unit(struct span name)
{
    return unit_find(duration_units, sizeof duration_units / sizeof duration_units[0], name);
}

/* Takes the digits in front of `*rest`. */
static int take_digits(struct span *rest, uint64_t *out)
{
    size_t len = 0;
    while (len < rest->len && isdigit((unsigned char)rest->data[len])) {
        len++;
    }
    int status = span_to_u64(span_make(rest->data, len), INT64_MAX, out);
    *rest = span_make(rest->data + len, rest->len - len);
    return status;
}

static struct span take_letters(struct span *rest)
{
    size_t len = 0;
    while (len < rest->len && isalpha((unsigned char)rest->data[len])) {
        len++;
    }
    struct span letters = span_make(rest->data, len);
    *rest = span_make(rest->data + len, rest->len - len);
    return letters;
}

static int scale(uint64_t number, int64_t factor, int64_t *out)
{
    if (number > (uint64_t)(INT64_MAX / factor)) {
        return ERR_LIMIT;
    }
    *out = (int64_t)number * factor;
    return ERR_OK;
}

int conf_parse_duration(struct span text, int64_t *out_ms)
{
    struct span rest = text;
    int64_t total = 0;
    int64_t smallest = INT64_MAX; /* units go from large to small: 1h30m, never 30m1h */
    do {
        uint64_t number = 0;
        int64_t part = 0;
        if (take_digits(&rest, &number) != ERR_OK) {
            return ERR_INVAL;
        }
        bool is_bare = rest.len == 0 && smallest == INT64_MAX;
        const struct unit *unit = duration_unit(is_bare ? SPAN_LIT("s") : take_letters(&rest));
        if (unit == NULL || unit->factor >= smallest) {
            return ERR_INVAL;
        }
        smallest = unit->factor;
        if (scale(number, unit->factor, &part) != ERR_OK || part > INT64_MAX - total) {
            return ERR_LIMIT;
        }
        total += part;
    } while (rest.len > 0);
    *out_ms = total;
    return ERR_OK;
}

int conf_parse_size(struct span text, uint64_t *out_bytes)
{
    struct span rest = text;
    uint64_t number = 0;
    if (take_digits(&rest, &number) != ERR_OK) {
        return ERR_INVAL;
    }
    rest = span_trim(rest);
    const struct unit *unit = unit_find(size_units, sizeof size_units / sizeof size_units[0], rest);
    if (unit == NULL) {
        return ERR_INVAL;
    }
    int64_t bytes = 0;
    int status = scale(number, unit->factor, &bytes);
    if (status == ERR_OK) {
        *out_bytes = (uint64_t)bytes;
    }
    return status;
}

/* The window behind the slash: "m", "h", or a duration such as "10s". */
static int parse_window(struct span text, int64_t *out_ms)
{
    const struct unit *unit = duration_unit(text);
    if (unit != NULL) {
        *out_ms = unit->factor;
        return ERR_OK;
    }
    return conf_parse_duration(text, out_ms);
}

int conf_parse_rate(struct span text, struct conf_rate *out)
{
    struct span rest = text;
    struct conf_rate rate = {0};
    if (take_digits(&rest, &rate.units) != ERR_OK) {
        return ERR_INVAL;
    }
    if (span_starts(rest, SPAN_LIT("r"))) {
        rate.is_recipients = true;
        rest = span_make(rest.data + 1, rest.len - 1);
    }
    if (!span_starts(rest, SPAN_LIT("/"))) {
        return ERR_INVAL;
    }
    int status = parse_window(span_make(rest.data + 1, rest.len - 1), &rate.window_ms);
    if (status != ERR_OK) {
        return status;
    }
    if (rate.units == 0 || rate.window_ms == 0) {
        return ERR_INVAL;
    }
    *out = rate;
    return ERR_OK;
}

int conf_parse_ladder(struct span text, int64_t *out_waits, size_t room, size_t *out_count,
                      bool *out_last_repeats)
{
    struct span rest = text;
    size_t count = 0;
    bool repeats = false;
    do {
        struct span step = span_trim(span_cut(&rest, ','));
        if (repeats) {
            return ERR_INVAL; /* the star stands behind the last wait only */
        }
        if (span_ends(step, SPAN_LIT("*"))) {
            repeats = true;
            step = span_trim(span_make(step.data, step.len - 1));
        }
        if (count == room) {
            return ERR_LIMIT;
        }
        int64_t wait_ms = 0;
        int status = conf_parse_duration(step, &wait_ms);
        if (status != ERR_OK) {
            return status;
        }
        if (wait_ms == 0) {
            return ERR_INVAL;
        }
        out_waits[count++] = wait_ms;
    } while (rest.len > 0);
    *out_count = count;
    *out_last_repeats = repeats;
    return ERR_OK;
}

static void scaled_text(const struct unit *units, size_t count, int64_t number, char *out,
                        size_t out_bytes)
{
    const struct unit *best = &units[0];
    if (number == 0) {
        (void)snprintf(out, out_bytes, "0");
        return;
    }
    for (size_t i = 1; i < count; i++) {
        if (number >= units[i].factor && number % units[i].factor == 0) {
            best = &units[i];
        }
    }
    (void)snprintf(out, out_bytes, "%" PRId64 "%s", number / best->factor, best->name);
}

void conf_number_text(enum conf_type type, int64_t number, char *out, size_t out_bytes)
{
    static const struct unit shown_sizes[] = {
        {"", 1},
        {"KiB", 1024},
        {"MiB", 1024 * 1024},
        {"GiB", 1024 * 1024 * 1024},
        {"TiB", INT64_C(1) << 40},
    };
    if (type == CONF_DURATION) {
        scaled_text(duration_units, sizeof duration_units / sizeof duration_units[0], number, out,
                    out_bytes);
    } else if (type == CONF_SIZE) {
        scaled_text(shown_sizes, sizeof shown_sizes / sizeof shown_sizes[0], number, out,
                    out_bytes);
    } else {
        (void)snprintf(out, out_bytes, "%" PRId64 "%s", number, type == CONF_PERCENT ? "%" : "");
    }
}
