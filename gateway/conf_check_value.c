#include "gateway/conf_tree.h"

#include "queue/fields.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

/* Values against their rows of the option table: how each type is written, its bounds, and the
 * files behind it. */

static void type_mistake(struct conf_loader *loader, struct conf_node *node, const char *path)
{
    node->is_bad = true;
    if (node->option->type == CONF_SECRET) {
        conf_mistake(loader, node, path, "", "the value cannot be used");
        return;
    }
    conf_mistake(loader, node, path, conf_type_text(node->option->type),
                 "\"%.80s\" cannot be used here", node->text);
}

static void check_bounds(struct conf_loader *loader, struct conf_node *node, const char *path)
{
    const struct conf_option *option = node->option;
    if (option->min == 0 && option->max == 0) {
        return;
    }
    if (node->number >= option->min && node->number <= option->max) {
        return;
    }
    char low[40];
    char high[40];
    conf_number_text(option->type, option->min, low, sizeof low);
    conf_number_text(option->type, option->max, high, sizeof high);
    node->is_bad = true;
    conf_mistake(loader, node, path, conf_textf(loader, "%s to %s", low, high), "%.80s is too %s",
                 node->text, node->number < option->min ? "small" : "large");
}

static bool read_number(struct conf_node *node)
{
    struct span text = span_of(node->text);
    uint64_t number = 0;
    switch (node->option->type) {
    case CONF_PERCENT:
        if (!span_ends(text, SPAN_LIT("%"))) {
            return false;
        }
        text.len--;
        FALLTHROUGH;
    case CONF_INT:
        if (span_to_u64(text, INT64_MAX, &number) != ERR_OK) {
            return false;
        }
        break;
    case CONF_SIZE:
        if (conf_parse_size(text, &number) != ERR_OK) {
            return false;
        }
        break;
    default:
        return conf_parse_duration(text, &node->number) == ERR_OK;
    }
    node->number = (int64_t)number;
    return true;
}

static void check_number(struct conf_loader *loader, struct conf_node *node, const char *path)
{
    if (read_number(node)) {
        check_bounds(loader, node, path);
    } else {
        type_mistake(loader, node, path);
    }
}

static void check_bool(struct conf_loader *loader, struct conf_node *node, const char *path)
{
    bool is_true = strcmp(node->text, "true") == 0;
    if (!is_true && strcmp(node->text, "false") != 0) {
        type_mistake(loader, node, path);
    }
    node->number = is_true ? 1 : 0;
}

/* "off, starttls or implicit" of "off|starttls|implicit". */
const char *check_words_text(struct conf_loader *loader, const char *words)
{
    char *text = conf_room(loader, strlen(words) * 4 + 1, 1);
    struct span rest = span_of(words);
    bool is_first = true;
    while (rest.len > 0) {
        struct span word = span_cut(&rest, '|');
        const char *link = is_first ? "" : rest.len > 0 ? ", " : " or ";
        size_t at = strlen(text);
        (void)snprintf(text + at, strlen(words) * 4 + 1 - at, "%s%.*s", link, SPAN_FMT(word));
        is_first = false;
    }
    return text;
}

static void check_enum(struct conf_loader *loader, struct conf_node *node, const char *path)
{
    const struct conf_option *option = node->option;
    struct span word = span_of(node->text);
    if (conf_word_in(option->values, word, &node->number)) {
        return;
    }
    node->is_bad = true;
    if (option->values_later != NULL && conf_word_in(option->values_later, word, NULL)) {
        conf_mistake(loader, node, path, check_words_text(loader, option->values),
                     "%s %s is not supported by this version", conf_option_key(option), node->text);
        return;
    }
    conf_mistake(loader, node, path, check_words_text(loader, option->values),
                 "\"%.80s\" cannot be used here", node->text);
}

static void check_ladder(struct conf_loader *loader, struct conf_node *node, const char *path)
{
    int64_t waits[CONF_LADDER_MAX];
    size_t count = 0;
    bool repeats = false;
    if (conf_parse_ladder(span_of(node->text), waits, CONF_LADDER_MAX, &count, &repeats) !=
        ERR_OK) {
        type_mistake(loader, node, path);
    }
}

/* Relative to the folder of the file. */
static void resolve_path(struct conf_loader *loader, struct conf_node *node)
{
    if (node->text[0] != '/' && loader->folder[0] != '\0') {
        node->text = conf_textf(loader, "%s%s", loader->folder, node->text);
    }
}

/* Opens a plain file; reports why it cannot. Pipes and devices could block or never end. */
static int open_file(struct conf_loader *loader, const struct conf_node *node, const char *path)
{
    int fd = open(node->text, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    struct stat facts;
    if (fd < 0 || fstat(fd, &facts) != 0) {
        conf_mistake(loader, node, path, "", "%s cannot be read: %s", node->text, strerror(errno));
    } else if (!S_ISREG(facts.st_mode)) {
        conf_mistake(loader, node, path, "", "%s is not a file", node->text);
    } else {
        return fd;
    }
    if (fd >= 0) {
        (void)close(fd); /* Nothing was written: its result cannot matter. */
    }
    return -1;
}

static void check_file(struct conf_loader *loader, struct conf_node *node, const char *path)
{
    resolve_path(loader, node);
    int fd = open_file(loader, node, path);
    if (fd < 0) {
        node->is_bad = true;
        return;
    }
    (void)close(fd);
}

static void check_path(struct conf_loader *loader, struct conf_node *node, const char *path)
{
    (void)path;
    resolve_path(loader, node);
}

static bool is_host_byte(unsigned char byte)
{
    return isalnum(byte) || byte == '.' || byte == '-' || byte == '_';
}

static void check_url(struct conf_loader *loader, struct conf_node *node, const char *path)
{
    struct span text = span_of(node->text);
    while (span_ends(text, SPAN_LIT("/"))) {
        text.len--;
    }
    bool is_good = span_starts(text, SPAN_LIT("https://")) && text.len > 8 &&
                   (is_host_byte((unsigned char)text.data[8]) || text.data[8] == '[');
    for (size_t i = 0; i < text.len; i++) {
        unsigned char byte = (unsigned char)text.data[i];
        is_good = is_good && byte > ' ' && byte < 127 && byte != '?' && byte != '#' && byte != '@';
    }
    if (!is_good) {
        type_mistake(loader, node, path);
        return;
    }
    node->text = conf_text(loader, text);
}

static void check_address(struct conf_loader *loader, struct conf_node *node, const char *path)
{
    if (!address_valid(span_of(node->text), true)) {
        type_mistake(loader, node, path);
    }
}

static bool bind_host_valid(struct span host)
{
    char text[80];
    unsigned char room[16];
    if (host.len == 0 || host.len >= sizeof text) {
        return false;
    }
    if (span_eq(host, SPAN_LIT("*"))) {
        return true;
    }
    if (host.data[0] == '[') {
        bool is_closed = host.len > 2 && host.data[host.len - 1] == ']';
        (void)snprintf(text, sizeof text, "%.*s", is_closed ? (int)host.len - 2 : 0, host.data + 1);
        return inet_pton(AF_INET6, text, room) == 1;
    }
    for (size_t i = 0; i < host.len; i++) {
        if (!is_host_byte((unsigned char)host.data[i])) {
            return false;
        }
    }
    return true;
}

static void check_bind(struct conf_loader *loader, struct conf_node *node, const char *path)
{
    const char *colon = strrchr(node->text, ':');
    uint64_t port = 0;
    if (colon == NULL || span_to_u64(span_of(colon + 1), 65535, &port) != ERR_OK ||
        !bind_host_valid(span_make(node->text, (size_t)(colon - node->text)))) {
        type_mistake(loader, node, path);
    }
}

static bool network_valid(const char *text)
{
    char address[80];
    unsigned char room[16];
    const char *slash = strchr(text, '/');
    size_t len = slash != NULL ? (size_t)(slash - text) : strlen(text);
    if (len >= sizeof address) {
        return false;
    }
    (void)snprintf(address, sizeof address, "%.*s", (int)len, text);
    uint64_t bits_max = 0;
    if (inet_pton(AF_INET, address, room) == 1) {
        bits_max = 32;
    } else if (inet_pton(AF_INET6, address, room) == 1) {
        bits_max = 128;
    } else {
        return false;
    }
    uint64_t bits = 0;
    return slash == NULL || span_to_u64(span_of(slash + 1), bits_max, &bits) == ERR_OK;
}

static void check_network(struct conf_loader *loader, struct conf_node *node, const char *path)
{
    struct policy_network network;
    struct err why;
    if (!network_valid(node->text)) {
        type_mistake(loader, node, path);
    } else if (policy_network_parse(node->text, &network, &why) != ERR_OK) {
        node->is_bad = true;
        conf_mistake(loader, node, path,
                     "the first address of the network, or a single address without the prefix",
                     "\"%s\" has address bits beyond its prefix", node->text);
    }
}

static bool domain_valid(struct span domain)
{
    if (span_starts(domain, SPAN_LIT("*."))) {
        domain = span_make(domain.data + 2, domain.len - 2);
    }
    if (domain.len == 0 || domain.len > 255) {
        return false;
    }
    while (domain.len > 0) {
        size_t dot = span_find(domain, '.');
        bool is_last = dot == domain.len;
        for (size_t i = 0; i < dot; i++) {
            if (domain.data[i] == '.' || !is_host_byte((unsigned char)domain.data[i])) {
                return false;
            }
        }
        if (dot == 0 || dot > 63 || (!is_last && dot + 1 == domain.len)) {
            return false;
        }
        size_t used = is_last ? dot : dot + 1;
        domain = span_make(domain.data + used, domain.len - used);
    }
    return true;
}

static void check_domain(struct conf_loader *loader, struct conf_node *node, const char *path)
{
    if (!domain_valid(span_of(node->text))) {
        type_mistake(loader, node, path);
    }
}

static bool pattern_valid(struct span pattern)
{
    if (span_eq(pattern, SPAN_LIT("*"))) {
        return true;
    }
    if (span_starts(pattern, SPAN_LIT("*@"))) {
        return domain_valid(span_make(pattern.data + 2, pattern.len - 2));
    }
    return address_valid(pattern, true);
}

static void check_pattern(struct conf_loader *loader, struct conf_node *node, const char *path)
{
    if (!pattern_valid(span_of(node->text))) {
        type_mistake(loader, node, path);
    }
}

static void check_rate(struct conf_loader *loader, struct conf_node *node, const char *path)
{
    struct conf_rate rate;
    if (conf_parse_rate(span_of(node->text), &rate) != ERR_OK) {
        type_mistake(loader, node, path);
    }
}

static void check_text(struct conf_loader *loader, struct conf_node *node, const char *path)
{
    for (const char *at = node->text; *at != '\0'; at++) {
        if ((unsigned char)*at < ' ' || *at == 127) {
            node->is_bad = true;
            conf_mistake(loader, node, path, "",
                         "the value must not hold control characters or line ends");
            return;
        }
    }
}

static void check_secret(struct conf_loader *loader, struct conf_node *node, const char *path)
{
    conf_secret_keep(loader, (char *)(uintptr_t)node->text);
    check_text(loader, node, path);
}

/* How each type reads one value; the items of the list types are read one by one. */
static void (*const value_checks[])(struct conf_loader *loader, struct conf_node *node,
                                    const char *path) = {
    [CONF_MAP] = NULL,
    [CONF_NAMED] = NULL,
    [CONF_LIST] = NULL,
    [CONF_STRING] = check_text,
    [CONF_BOOL] = check_bool,
    [CONF_INT] = check_number,
    [CONF_PERCENT] = check_number,
    [CONF_DURATION] = check_number,
    [CONF_SIZE] = check_number,
    [CONF_ENUM] = check_enum,
    [CONF_LADDER] = check_ladder,
    [CONF_SECRET] = check_secret,
    [CONF_FILE] = check_file,
    [CONF_PATH] = check_path,
    [CONF_URL] = check_url,
    [CONF_ADDRESS] = check_address,
    [CONF_BIND] = check_bind,
    [CONF_STRINGS] = check_text,
    [CONF_ENUMS] = check_enum,
    [CONF_NETWORKS] = check_network,
    [CONF_DOMAINS] = check_domain,
    [CONF_PATTERNS] = check_pattern,
    [CONF_ADDRESSES] = check_address,
    [CONF_RATES] = check_rate,
};

static const char *expected_text(struct conf_loader *loader, const struct conf_option *option)
{
    return option->values != NULL ? check_words_text(loader, option->values)
                                  : conf_type_text(option->type);
}

static void check_single(struct conf_loader *loader, struct conf_node *node, const char *path)
{
    if (node->is_bad) {
        return; /* its ${NAME} was reported */
    }
    if (node->kind != CONF_NODE_SCALAR) {
        node->is_bad = true;
        conf_mistake(loader, node, path, expected_text(loader, node->option),
                     "a single value belongs here, not a %s",
                     node->kind == CONF_NODE_MAP ? "section" : "list");
        return;
    }
    if (node->text[0] == '\0' || node_is_null(node)) {
        node->is_bad = true;
        conf_mistake(loader, node, path, expected_text(loader, node->option), "the value is empty");
        return;
    }
    value_checks[node->option->type](loader, node, path);
}

static void check_plain_list(struct conf_loader *loader, struct conf_node *node, const char *path)
{
    if (node_is_null(node)) {
        node->kind = CONF_NODE_LIST;
    }
    if (node->kind != CONF_NODE_LIST) {
        node->is_bad = true;
        conf_mistake(loader, node, path, conf_type_text(node->option->type), "a list belongs here");
        return;
    }
    if (node->count == 0 && (node->option->flags & CONF_REQUIRED) != 0) {
        node->is_bad = true;
        conf_mistake(loader, node, path, conf_type_text(node->option->type), "the list is empty");
    }
    size_t index = 0;
    for (struct conf_node *at = node->first; at != NULL; at = at->next, index++) {
        char digits[24];
        char below[CONF_PATH_MAX];
        (void)snprintf(digits, sizeof digits, "%zu", index);
        conf_path_join(below, path, digits);
        at->option = node->option;
        check_single(loader, at, below);
        node->is_bad = node->is_bad || at->is_bad;
    }
}

int conf_read_all(int fd, struct buf *out)
{
    for (;;) {
        char *room = NULL;
        int status = buf_reserve(out, 1024, &room);
        if (status != ERR_OK) {
            return status;
        }
        ssize_t got = read(fd, room, 1024);
        if (got < 0) {
            return ERR_IO;
        }
        if (got == 0) {
            return ERR_OK;
        }
        buf_commit(out, (size_t)got);
    }
}

/* Line ends after the secret are the editor's, not the secret's; htpasswd leaves two. */
static struct span without_line_ends(struct span text)
{
    while (span_ends(text, SPAN_LIT("\n"))) {
        text.len--;
        text.len -= span_ends(text, SPAN_LIT("\r")) ? 1 : 0;
    }
    return text;
}

/* The content of the twin's file becomes the secret's value. */
void check_twin_file(struct conf_loader *loader, struct conf_node *twin, const char *path)
{
    if (twin->is_bad || twin->kind != CONF_NODE_SCALAR || twin->text[0] == '\0') {
        conf_mistake(loader, twin, path, conf_type_text(CONF_FILE),
                     "the value cannot be used here");
        twin->is_bad = true;
        return;
    }
    resolve_path(loader, twin);
    int fd = open_file(loader, twin, path);
    if (fd < 0) {
        twin->is_bad = true;
        return;
    }
    struct buf bytes;
    buf_init_secret(&bytes, CONF_SECRET_FILE_MAX);
    int status = conf_read_all(fd, &bytes);
    (void)close(fd);
    struct span secret = without_line_ends(buf_span(&bytes));
    if (status != ERR_OK || secret.len == 0 || memchr(secret.data, '\0', secret.len) != NULL) {
        conf_mistake(loader, twin, path, "a file with the secret alone, below 64 KiB",
                     "%s cannot be used", twin->text);
        twin->is_bad = true;
    } else {
        twin->is_plain = false;
        twin->text = conf_text(loader, secret);
    }
    buf_release(&bytes);
}

void check_value(struct conf_loader *loader, struct conf_node *node, const char *path)
{
    if (conf_type_is_list(node->option->type)) {
        check_plain_list(loader, node, path);
    } else {
        check_single(loader, node, path);
    }
}
