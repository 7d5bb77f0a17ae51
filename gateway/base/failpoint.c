#include "gateway/base/failpoint.h"

#ifdef HEAVE_FAILPOINTS

#include "gateway/base/buf.h"
#include "gateway/base/codec.h"

#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum {
    ARMED_MAX = 16,
};

enum action {
    ACTION_KILL,
    ACTION_STOP,
    ACTION_SLEEP,
    ACTION_ERROR,
};

static const char *const action_names[] = {"kill", "stop", "sleep", "error"};

struct armed {
    const char *name; /* in the table */
    enum action action;
    bool repeats; /* at `passage` and each later one */
    int64_t sleep_ms;
    uint64_t passage;
    _Atomic uint64_t passed;
};

#define TABLE_NAME(name, stake) name,
static const char *const point_names[] = {FAILPOINT_TABLE(TABLE_NAME)};
#define POINT_COUNT (sizeof point_names / sizeof point_names[0])

/* Mutable globals, against the style: a fail point has no object to hang its state on, all of it
 * but the counters is written once before there are threads, and no user's build has it. */
static struct armed armed_points[ARMED_MAX];
static size_t armed_count;
static const _Atomic int64_t *clock_offset_ms;

static const char *name_in_table(struct span name)
{
    for (size_t i = 0; i < POINT_COUNT; i++) {
        if (span_eq(span_of(point_names[i]), name)) {
            return point_names[i];
        }
    }
    return NULL;
}

/* "12", "12+", "~12" or nothing. */
static bool take_passage(struct span text, struct armed *armed)
{
    armed->passage = 1;
    if (text.len == 0) {
        return true;
    }
    bool random = text.data[0] == '~';
    if (random) {
        text = span_make(text.data + 1, text.len - 1);
    }
    if (text.len > 0 && text.data[text.len - 1] == '+') {
        armed->repeats = true;
        text.len--;
    }
    if (span_to_u64(text, 1000000000, &armed->passage) != ERR_OK || armed->passage == 0) {
        return false;
    }
    if (random) {
        uint64_t draw = 0;
        codec_random(&draw, sizeof draw);
        armed->passage = 1 + draw % armed->passage;
    }
    return true;
}

static bool take_action(struct span text, struct armed *armed)
{
    struct span name = span_cut(&text, '=');
    for (size_t i = 0; i < sizeof action_names / sizeof action_names[0]; i++) {
        if (span_eq(span_of(action_names[i]), name)) {
            armed->action = (enum action)i;
            uint64_t ms = 0;
            bool sleeps = armed->action == ACTION_SLEEP;
            bool good = !sleeps || span_to_u64(text, 3600000, &ms) == ERR_OK;
            armed->sleep_ms = (int64_t)ms;
            return good;
        }
    }
    return false;
}

static int arm(struct span text, struct err *err)
{
    struct span whole = text;
    struct span name = span_cut(&text, ':');
    struct span action = span_cut(&text, '@');
    if (armed_count == ARMED_MAX) {
        return err_set(err, ERR_INVAL, "HEAVE_FAILPOINT names more than %d points.", ARMED_MAX);
    }
    struct armed *armed = &armed_points[armed_count];
    armed->name = name_in_table(name);
    if (armed->name == NULL) {
        return err_set(err, ERR_INVAL, "HEAVE_FAILPOINT: there is no fail point \"%.*s\".",
                       SPAN_FMT(name));
    }
    if (!take_action(action, armed) || !take_passage(text, armed)) {
        return err_set(err, ERR_INVAL, "HEAVE_FAILPOINT: \"%.*s\" is not name:action[@n].",
                       SPAN_FMT(whole));
    }
    armed_count++;
    return ERR_OK;
}

static int map_clock(const char *path, struct err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return err_set(err, ERR_IO, "HEAVE_CLOCK_OFFSET_FILE: %s cannot be opened.", path);
    }
    void *mapped = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, fd, 0);
    (void)close(fd);
    if (mapped == MAP_FAILED) {
        return err_set(err, ERR_IO, "HEAVE_CLOCK_OFFSET_FILE: %s cannot be mapped.", path);
    }
    clock_offset_ms = mapped;
    return ERR_OK;
}

int failpoint_setup(struct err *err)
{
    const char *points = getenv("HEAVE_FAILPOINT");
    struct span rest = points != NULL ? span_of(points) : (struct span){0};
    int status = ERR_OK;
    while (status == ERR_OK && rest.len > 0) {
        status = arm(span_cut(&rest, ','), err);
    }
    const char *clock = getenv("HEAVE_CLOCK_OFFSET_FILE");
    if (status == ERR_OK && clock != NULL) {
        status = map_clock(clock, err);
    }
    return status;
}

/* Whether this passage is the one; says so. */
static bool fires(struct armed *armed)
{
    uint64_t passage = atomic_fetch_add_explicit(&armed->passed, 1, memory_order_relaxed) + 1;
    if (passage != armed->passage && !(armed->repeats && passage > armed->passage)) {
        return false;
    }
    char line[160];
    int len = snprintf(line, sizeof line, "failpoint %s %s passage %llu\n", armed->name,
                       action_names[armed->action], (unsigned long long)passage);
    ssize_t written = write(STDERR_FILENO, line, (size_t)len);
    (void)written; /* nobody to tell */
    return true;
}

static void sleep_for(int64_t ms)
{
    struct timespec left = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
    while (nanosleep(&left, &left) != 0) {
    }
}

static void act(struct armed *armed)
{
    switch (armed->action) {
    case ACTION_KILL:
        (void)kill(getpid(), SIGKILL);
        break;
    case ACTION_STOP:
        (void)kill(getpid(), SIGSTOP);
        break;
    case ACTION_SLEEP:
        sleep_for(armed->sleep_ms);
        break;
    case ACTION_ERROR:
        break;
    }
}

void failpoint_pass(const char *name)
{
    for (size_t i = 0; i < armed_count; i++) {
        struct armed *armed = &armed_points[i];
        if (strcmp(armed->name, name) == 0 && fires(armed)) {
            act(armed);
        }
    }
}

bool failpoint_fails(const char *name)
{
    bool fails = false;
    for (size_t i = 0; i < armed_count; i++) {
        struct armed *armed = &armed_points[i];
        if (strcmp(armed->name, name) == 0 && fires(armed)) {
            act(armed);
            fails = fails || armed->action == ACTION_ERROR;
        }
    }
    return fails;
}

int64_t failpoint_clock_offset_ms(void)
{
    return clock_offset_ms != NULL ? atomic_load_explicit((const _Atomic int64_t *)clock_offset_ms,
                                                          memory_order_relaxed)
                                   : 0;
}

#endif
