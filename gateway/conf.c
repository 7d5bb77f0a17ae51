#include "gateway/conf.h"

#include "gateway/conf_tree.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>

extern char **environ;

#define REPORT_BYTES_MAX ((size_t)8 << 20)

/* ---- The report ---- */

void conf_report_init(struct conf_report *report)
{
    *report = (struct conf_report){.file = ""};
    arena_init(&report->arena, REPORT_BYTES_MAX);
}

void conf_report_release(struct conf_report *report)
{
    arena_release(&report->arena);
    *report = (struct conf_report){.file = ""};
}

static const char *report_text(struct conf_report *report, const char *text)
{
    struct span copy = arena_dup(&report->arena, span_of(text));
    return copy.data != NULL ? copy.data : "";
}

static bool comes_before(const struct conf_mistake *a, const struct conf_mistake *b)
{
    /* What has no place in the file stands at the end. */
    size_t a_line = a->line > 0 ? a->line : SIZE_MAX;
    size_t b_line = b->line > 0 ? b->line : SIZE_MAX;
    return a_line != b_line ? a_line < b_line : a->column < b->column;
}

/* Puts a mistake in its place; later ones at the same place come after. */
static void report_insert(struct conf_report *report, const struct conf_mistake *mistake)
{
    size_t at = report->count++;
    while (at > 0 && comes_before(mistake, &report->mistakes[at - 1])) {
        report->mistakes[at] = report->mistakes[at - 1];
        at--;
    }
    report->mistakes[at] = *mistake;
}

static void report_add(struct conf_report *report, size_t line, size_t column, const char *path,
                       const char *expected, const char *message)
{
    if (report->mistakes == NULL) {
        report->mistakes = arena_alloc(&report->arena,
                                       CONF_MISTAKES_MAX * sizeof *report->mistakes);
        report->room = report->mistakes != NULL ? CONF_MISTAKES_MAX : 0;
    }
    if (report->count == report->room) {
        report->cut = true;
        return;
    }
    report_insert(report, &(struct conf_mistake){
                              .line = line,
                              .column = column,
                              .path = report_text(report, path),
                              .message = report_text(report, message),
                              .expected = report_text(report, expected),
                          });
}

#define MESSAGE_MAX 1200

void conf_mistake_at(struct conf_loader *loader, size_t line, size_t column, const char *path,
                     const char *expected, const char *format, ...)
{
    char message[MESSAGE_MAX];
    va_list args;
    va_start(args, format);
    (void)vsnprintf(message, sizeof message, format, args);
    va_end(args);
    report_add(loader->report, line, column, path, expected, message);
}

void conf_mistake(struct conf_loader *loader, const struct conf_node *node, const char *path,
                  const char *expected, const char *format, ...)
{
    char message[MESSAGE_MAX];
    size_t used = 0;
    bool is_environment = node->origin == CONF_FROM_ENVIRONMENT;
    if (is_environment) {
        int len = snprintf(message, sizeof message,
                           "environment variable %.200s: ", node->variable);
        used = len > 0 ? (size_t)len : 0;
    }
    va_list args;
    va_start(args, format);
    (void)vsnprintf(message + used, sizeof message - used, format, args);
    va_end(args);
    report_add(loader->report, is_environment ? 0 : node->line, is_environment ? 0 : node->column,
               path, expected, message);
}

void conf_report_add(struct conf_report *report, const struct conf *conf, const char *path,
                     const char *message)
{
    size_t line = 0;
    size_t column = 0;
    (void)conf_where(conf, path, &line, &column); /* stays 0:0 for what is not in the file */
    report_add(report, line, column, path, "", message);
}

static int print_mistake(const struct conf_report *report, const struct conf_mistake *mistake,
                         struct buf *out)
{
    int status = buf_append(out, span_of(report->file));
    if (status == ERR_OK && mistake->line > 0) {
        status = buf_printf(out, ":%zu:%zu", mistake->line, mistake->column);
    }
    if (status == ERR_OK) {
        status = buf_printf(out, ": %s%s%s", mistake->path, mistake->path[0] != '\0' ? ": " : "",
                            mistake->message);
    }
    if (status == ERR_OK && mistake->expected[0] != '\0') {
        status = buf_printf(out, " (expected %s)", mistake->expected);
    }
    return status == ERR_OK ? buf_append_byte(out, '\n') : status;
}

int conf_report_print(const struct conf_report *report, struct buf *out)
{
    for (size_t i = 0; i < report->count; i++) {
        int status = print_mistake(report, &report->mistakes[i], out);
        if (status != ERR_OK) {
            return status;
        }
    }
    return report->cut ? buf_printf(out, "%s: and more\n", report->file) : ERR_OK;
}

/* ---- Loading ---- */

/* The folder of the file, absolute: others may change the working folder, as the embedded Redis
 * does. */
static const char *folder_of(struct conf_loader *loader, const char *file)
{
    const char *slash = strrchr(file, '/');
    struct span folder = span_make(file, slash != NULL ? (size_t)(slash - file) + 1 : 0);
    char here[PATH_MAX];
    if (file[0] == '/' || getcwd(here, sizeof here) == NULL) {
        return conf_text(loader, folder);
    }
    return conf_textf(loader, "%s/%.*s", strcmp(here, "/") != 0 ? here : "", SPAN_FMT(folder));
}

static void load_tree(struct conf_loader *loader, struct span bytes, struct conf *conf)
{
    struct conf_node *root = tree_parse(loader, bytes);
    if (root == NULL) {
        return;
    }
    loader->keep->root = root;
    tree_expand(loader, root, "");
    tree_presets(loader, root);
    tree_override(loader, root);
    convert_defaults(loader, root);
    check_tree(loader, root);
    convert_tree(loader, root, conf);
}

int conf_load_bytes(const char *file, struct span bytes, const char *const *environment,
                    struct conf **out, struct conf_report *report)
{
    struct conf *conf = mem_zero(sizeof *conf);
    struct conf_private *keep = mem_zero(sizeof *keep);
    atomic_init(&keep->references, 1);
    arena_init(&keep->arena, CONF_ARENA_MAX);
    conf->private_part = keep;
    struct conf_loader loader = {
        .keep = keep,
        .arena = &keep->arena,
        .report = report,
        .environment = environment,
    };
    loader.file = conf_text(&loader, span_of(file));
    loader.folder = folder_of(&loader, file);
    conf->file = loader.file;
    report->file = report_text(report, file);
    load_tree(&loader, bytes, conf);
    if (report->count > 0) {
        conf_unref(&conf);
        return ERR_INVAL;
    }
    *out = conf;
    return ERR_OK;
}

static int read_error(struct conf_report *report, const char *file, int status, const char *why)
{
    report->file = report_text(report, file);
    char message[MESSAGE_MAX];
    (void)snprintf(message, sizeof message, "the file cannot be read: %s", why);
    report_add(report, 0, 0, "", "", message);
    return status;
}

int conf_load(const char *file, struct conf **out, struct conf_report *report)
{
    int fd = open(file, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return read_error(report, file, ERR_IO, strerror(errno));
    }
    struct buf bytes;
    buf_init_secret(&bytes, CONF_BYTES_MAX + 2048);
    int status = conf_read_all(fd, &bytes);
    int saved = errno;
    (void)close(fd); /* Only read from. */
    if (status == ERR_IO) {
        status = read_error(report, file, ERR_IO, strerror(saved));
    } else if (status != ERR_OK) {
        status = read_error(report, file, ERR_LIMIT, "it is larger than 1 MiB");
    } else {
        status = conf_load_bytes(file, buf_span(&bytes), (const char *const *)environ, out, report);
    }
    buf_release(&bytes);
    return status;
}

struct conf *conf_ref(struct conf *conf)
{
    uint32_t before = atomic_fetch_add_explicit(&conf->private_part->references, 1,
                                                memory_order_relaxed);
    ASSERT(before > 0);
    return conf;
}

void conf_unref(struct conf **conf)
{
    struct conf *last = *conf;
    *conf = NULL;
    if (last == NULL) {
        return;
    }
    struct conf_private *keep = last->private_part;
    uint32_t before = atomic_fetch_sub_explicit(&keep->references, 1, memory_order_acq_rel);
    ASSERT(before > 0);
    if (before > 1) {
        return;
    }
    for (struct conf_secret *at = keep->secrets; at != NULL; at = at->next) {
        mem_wipe(at->text, at->len);
    }
    arena_release(&keep->arena);
    mem_free(keep);
    mem_free(last);
}

bool conf_where(const struct conf *conf, const char *path, size_t *out_line, size_t *out_column)
{
    const struct conf_node *node = node_at(conf->private_part->root, path);
    if (node == NULL || node->origin != CONF_FROM_FILE) {
        return false;
    }
    *out_line = node->line;
    *out_column = node->column;
    return true;
}

const char *conf_protocol_name(enum conf_protocol protocol)
{
    switch (protocol) {
    case CONF_PROTOCOL_SMTP:
        return "smtp";
    case CONF_PROTOCOL_HTTP:
        return "http";
    case CONF_PROTOCOL_ADMIN:
        return "admin";
    }
    UNREACHABLE();
}

/* ---- What a reload cannot change ---- */

static bool values_differ(const struct conf_node *a, const struct conf_node *b)
{
    if (a == NULL || b == NULL) {
        return a != b;
    }
    if (a->kind != b->kind || a->count != b->count) {
        return true;
    }
    if (a->kind == CONF_NODE_SCALAR) {
        return strcmp(a->text, b->text) != 0;
    }
    const struct conf_node *other = b->first;
    for (const struct conf_node *at = a->first; at != NULL; at = at->next) {
        const struct conf_node *same = a->kind == CONF_NODE_MAP ? node_child(b, at->key) : other;
        if (values_differ(at, same)) {
            return true;
        }
        other = other->next;
    }
    return false;
}

/* Whether the value, or for lists and named sections anything below it, differs. */
static bool option_changed(const struct conf *before, const struct conf *after,
                           const struct conf_option *option)
{
    return values_differ(node_at(before->private_part->root, option->path),
                         node_at(after->private_part->root, option->path));
}

int conf_restart_needed(const struct conf *before, const struct conf *after, struct buf *out)
{
    size_t count = 0;
    const struct conf_option *options = conf_options(&count);
    for (size_t i = 0; i < count; i++) {
        bool is_whole = strchr(options[i].path, '*') == NULL && options[i].type != CONF_MAP;
        if (options[i].reload != CONF_RESTART || !is_whole ||
            !option_changed(before, after, &options[i])) {
            continue;
        }
        int status = buf_printf(out, "%s%s", buf_len(out) > 0 ? ", " : "", options[i].path);
        if (status != ERR_OK) {
            return status;
        }
    }
    return ERR_OK;
}
