/* What the unit tests of gateway/conf share: a folder with files, loading from text, looking for
 * mistakes. */
#ifndef HEAVE_TESTS_UNIT_GATEWAY_CONF_RIG_H
#define HEAVE_TESTS_UNIT_GATEWAY_CONF_RIG_H

#include "gateway/conf.h"

#include <jansson.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define LENGTH(array) (sizeof(array) / sizeof((array)[0]))

/* A folder with the files that configurations name. */
struct rig {
    char folder[64];
    char file[96]; /* folder/heave.yaml: never written, only named */
    struct conf *conf;
    struct conf_report report;
    const char *const *environment;
};

static inline void write_file(const struct rig *rig, const char *name, const char *content)
{
    char path[160];
    (void)snprintf(path, sizeof path, "%s/%s", rig->folder, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(content, 1, strlen(content), file), strlen(content));
    assert_int_equal(fclose(file), 0);
}

static inline int rig_setup(void **state)
{
    struct rig *rig = mem_zero(sizeof *rig);
    (void)snprintf(rig->folder, sizeof rig->folder, "/tmp/heave-conf-XXXXXX");
    assert_non_null(mkdtemp(rig->folder));
    (void)snprintf(rig->file, sizeof rig->file, "%s/heave.yaml", rig->folder);
    write_file(rig, "tls.crt", "certificate\n");
    write_file(rig, "tls.key", "key\n");
    write_file(rig, "hve.pw", "hve secret\n");
    write_file(rig, "acs.key", "aGVhdmUtc2lt\r\n");
    conf_report_init(&rig->report);
    *state = rig;
    return 0;
}

static inline int rig_teardown(void **state)
{
    static const char *const names[] = {"tls.crt", "tls.key", "hve.pw",    "keys",
                                        "acs.key", "other",   "heave.yaml"};
    struct rig *rig = *state;
    conf_unref(&rig->conf);
    conf_report_release(&rig->report);
    for (size_t i = 0; i < LENGTH(names); i++) {
        char path[160];
        (void)snprintf(path, sizeof path, "%s/%s", rig->folder, names[i]);
        (void)unlink(path); /* some tests do not make all of them */
    }
    assert_int_equal(rmdir(rig->folder), 0);
    mem_free(rig);
    return 0;
}

static inline int load(struct rig *rig, const char *text)
{
    conf_unref(&rig->conf);
    conf_report_release(&rig->report);
    conf_report_init(&rig->report);
    return conf_load_bytes(rig->file, span_of(text), rig->environment, &rig->conf, &rig->report);
}

static inline void print_report(const struct rig *rig)
{
    struct buf text;
    buf_init(&text, (size_t)1 << 22);
    if (conf_report_print(&rig->report, &text) == ERR_OK) {
        print_message("%.*s", SPAN_FMT(buf_span(&text)));
    }
    buf_release(&text);
}

static inline void load_good(struct rig *rig, const char *text)
{
    if (load(rig, text) != ERR_OK) {
        print_report(rig);
        fail_msg("the configuration was refused");
    }
    assert_int_equal(rig->report.count, 0);
}

/* The smallest configuration that does something; tests add their lines. */
#define LISTENERS "listeners: [{protocol: smtp, bind: \"127.0.0.1:2525\"}]\n"
#define BACKENDS \
    "backends: {acs: {type: acs, endpoint: \"https://x.test\", access_key: aGVhdmU=, sender: a@b.test}}\n"
#define ROUTES "routes: [{via: [acs]}]\n"
#define BASE LISTENERS BACKENDS ROUTES
#define BASE_LINES 3

static inline bool find_mistake(const struct rig *rig, size_t line, size_t column, const char *path,
                                const char *fragment)
{
    for (size_t i = 0; i < rig->report.count; i++) {
        const struct conf_mistake *m = &rig->report.mistakes[i];
        bool is_text = strstr(m->message, fragment) != NULL ||
                       strstr(m->expected, fragment) != NULL;
        if (m->line == line && m->column == column && strcmp(m->path, path) == 0 && is_text) {
            return true;
        }
    }
    return false;
}

static inline void has_mistake(const struct rig *rig, size_t line, size_t column, const char *path,
                               const char *fragment)
{
    if (!find_mistake(rig, line, column, path, fragment)) {
        print_report(rig);
        fail_msg("no mistake at %zu:%zu %s with \"%s\"", line, column, path, fragment);
    }
}

struct bad_case {
    const char *text;
    size_t line, column;
    const char *path;
    const char *fragment;
};

#endif
