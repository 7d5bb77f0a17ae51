#include "bench/sim/pace.h"

#define QUOTA_LIMIT_MAX 1000000

/* "m", "h", "10s": a unit with an optional count before it. */
static int read_window(struct span text, int64_t *out_ms)
{
    static const struct {
        char unit;
        int64_t ms;
    } UNITS[] = {{'s', 1000}, {'m', 60000}, {'h', 3600000}, {'d', 86400000}};
    if (text.len == 0) {
        return ERR_INVAL;
    }
    uint64_t count = 1;
    struct span digits = span_make(text.data, text.len - 1);
    if (digits.len > 0 && (span_to_u64(digits, 100000, &count) != 0 || count == 0)) {
        return ERR_INVAL;
    }
    for (size_t i = 0; i < sizeof(UNITS) / sizeof(UNITS[0]); i++) {
        if (UNITS[i].unit == text.data[text.len - 1]) {
            *out_ms = UNITS[i].ms * (int64_t)count;
            return 0;
        }
    }
    return ERR_INVAL;
}

int quota_read(struct span text, struct quota *out, struct err *err)
{
    struct quota quota = {0};
    struct span rest = text;
    if (span_eq(text, SPAN_LIT("off"))) {
        *out = quota;
        return 0;
    }
    while (rest.len > 0) {
        struct span window = span_trim(span_cut(&rest, ','));
        uint64_t limit = 0;
        int64_t window_ms = 0;
        if (quota.count == QUOTA_WINDOWS_MAX ||
            span_to_u64(span_cut(&window, '/'), QUOTA_LIMIT_MAX, &limit) != 0 || limit == 0 ||
            read_window(window, &window_ms) != 0) {
            quota_release(&quota);
            return err_set(err, ERR_INVAL, "\"%.*s\" is no quota such as 30/m,100/h or off.",
                           SPAN_FMT(text));
        }
        quota.windows[quota.count++] = (struct quota_window){
            .limit = (uint32_t)limit,
            .window_ms = window_ms,
            .times = mem_zero(limit * sizeof(int64_t)),
        };
    }
    *out = quota;
    return 0;
}

void quota_release(struct quota *quota)
{
    for (size_t i = 0; i < quota->count; i++) {
        mem_free(quota->windows[i].times);
    }
    *quota = (struct quota){0};
}

void quota_reset(struct quota *quota)
{
    for (size_t i = 0; i < quota->count; i++) {
        quota->windows[i].next = 0;
        quota->windows[i].filled = 0;
    }
}

/* Counts the request and returns whether the window was already full. */
static bool window_take(struct quota_window *window, int64_t now_ms)
{
    bool full = window->filled == window->limit &&
                window->times[window->next] > now_ms - window->window_ms;
    window->times[window->next] = now_ms;
    window->next = (window->next + 1) % window->limit;
    if (window->filled < window->limit) {
        window->filled++;
    }
    return full;
}

const struct quota_window *quota_take(struct quota *quota, int64_t now_ms, int64_t *out_wait_ms)
{
    const struct quota_window *broken = NULL;
    for (size_t i = 0; i < quota->count; i++) {
        struct quota_window *window = &quota->windows[i];
        if (!window_take(window, now_ms)) {
            continue;
        }
        int64_t wait_ms = window->times[window->next] + window->window_ms - now_ms;
        if (broken == NULL || wait_ms > *out_wait_ms) {
            broken = window;
            *out_wait_ms = wait_ms;
        }
    }
    return broken;
}

#define SCOPES_MAX 1024
#define SCOPE_TEXT_MAX 160

struct closure {
    char scope[SCOPE_TEXT_MAX];
    size_t scope_len;
    int64_t from_ms;
    int64_t until_ms;
    bool enforced;
};
struct closures {
    int64_t grace_ms;
    size_t count;
    struct closure items[SCOPES_MAX];
};

struct closures *closures_new(int64_t grace_ms)
{
    struct closures *closures = mem_zero(sizeof(*closures));
    closures->grace_ms = grace_ms;
    return closures;
}

void closures_free(struct closures **closures)
{
    mem_free(*closures);
    *closures = NULL;
}

void closures_reset(struct closures *closures)
{
    closures->count = 0;
}

static struct closure *find_closure(struct closures *closures, struct span scope)
{
    for (size_t i = 0; i < closures->count; i++) {
        struct closure *item = &closures->items[i];
        if (span_ieq(span_make(item->scope, item->scope_len), scope)) {
            return item;
        }
    }
    return NULL;
}

static struct closure *oldest_closure(struct closures *closures)
{
    struct closure *oldest = &closures->items[0];
    for (size_t i = 1; i < closures->count; i++) {
        if (closures->items[i].until_ms < oldest->until_ms) {
            oldest = &closures->items[i];
        }
    }
    return oldest;
}

void closures_announce(struct closures *closures, struct span scope, int64_t now_ms,
                       int64_t wait_ms, bool enforced)
{
    if (scope.len > SCOPE_TEXT_MAX) {
        scope.len = SCOPE_TEXT_MAX;
    }
    struct closure *item = find_closure(closures, scope);
    if (item == NULL) {
        item = closures->count < SCOPES_MAX ? &closures->items[closures->count++]
                                            : oldest_closure(closures);
        *item = (struct closure){.scope_len = scope.len, .from_ms = now_ms};
        memcpy(item->scope, scope.data, scope.len);
    }
    if (item->until_ms <= now_ms) {
        item->from_ms = now_ms;
        item->enforced = false;
    }
    if (now_ms + wait_ms > item->until_ms) {
        item->until_ms = now_ms + wait_ms;
    }
    item->enforced = item->enforced || enforced;
}

int64_t closures_check(struct closures *closures, struct span scope, int64_t now_ms,
                       struct ledger_counts *counts)
{
    if (scope.len > SCOPE_TEXT_MAX) {
        scope.len = SCOPE_TEXT_MAX;
    }
    const struct closure *item = find_closure(closures, scope);
    if (item == NULL || now_ms >= item->until_ms) {
        return 0;
    }
    if (now_ms - item->from_ms <= closures->grace_ms) {
        counts->requests_on_the_way++;
    } else {
        counts->requests_during_retry_after++;
    }
    return item->enforced ? item->until_ms - now_ms : 0;
}
