#include "gateway/conf_tree.h"

#include "gateway/base/codec.h"

#include <stdio.h>

/* From the checked tree to the structs: credentials, backends, routes, clients, and the names they
 * call each other by. */

/* A list of names for "did you mean". */
struct names {
    const char **texts;
    size_t count;
};

static struct names names_of(struct conf_loader *loader, size_t room)
{
    return (struct names){.texts = conf_room(loader, room, sizeof(const char *))};
}

static bool names_find(const struct names *names, const char *text, size_t *out_index)
{
    for (size_t i = 0; i < names->count; i++) {
        if (names->texts[i] != NULL && strcmp(names->texts[i], text) == 0) {
            *out_index = i;
            return true;
        }
    }
    return false;
}

static void unknown_name(struct conf_loader *loader, const struct conf_node *node, const char *path,
                         const char *what, const struct names *names)
{
    const char *nearest = check_nearest(node->text, names->texts, names->count);
    if (nearest != NULL) {
        conf_mistake(loader, node, path, "", "there is no %s \"%.80s\", did you mean \"%s\"?", what,
                     node->text, nearest);
    } else {
        conf_mistake(loader, node, path, "", "there is no %s \"%.80s\"", what, node->text);
    }
}

/* Reports a name that is none of `names`; true when it is one, or not given, or already reported.
 */
static bool check_name(struct conf_loader *loader, const struct conf_node *map, const char *path,
                       const char *key, const char *what, const struct names *names,
                       size_t *out_index)
{
    const struct conf_node *node = node_child(map, key);
    if (node == NULL || node->is_bad || node->kind != CONF_NODE_SCALAR) {
        return false;
    }
    if (names_find(names, node->text, out_index)) {
        return true;
    }
    char full[CONF_PATH_MAX];
    conf_path_join(full, path, key);
    unknown_name(loader, node, full, what, names);
    return false;
}

/* ---- Credentials ---- */

static void convert_credentials(struct conf_loader *loader, const struct conf_node *root,
                                struct conf *conf, struct names *names)
{
    const struct conf_node *list = read_section(root, "credentials");
    size_t room = list != NULL ? list->count : 0;
    struct credential_conf *credentials = conf_room(loader, room, sizeof *credentials);
    *names = names_of(loader, room);
    for (const struct conf_node *at = list != NULL ? list->first : NULL; at != NULL;
         at = at->next) {
        credentials[names->count] = (struct credential_conf){
            .name = at->key,
            .authority = read_text(at, "authority"),
            .tenant_id = read_text(at, "tenant_id"),
            .client_id = read_text(at, "client_id"),
            .client_secret = read_text(at, "client_secret"),
            .scope = read_text(at, "scope"),
            .ca_file = read_text(at, "ca_file"),
        };
        names->texts[names->count++] = at->key;
    }
    conf->credentials = credentials;
    conf->credential_count = names->count;
}

/* ---- Backends ---- */

static void convert_accounts(struct conf_loader *loader, const struct conf_node *node,
                             struct backend_conf *out)
{
    const struct conf_node *list = read_section(node, "accounts");
    if (list != NULL) {
        struct backend_account *accounts = conf_room(loader, list->count, sizeof *accounts);
        for (const struct conf_node *at = list->first; at != NULL; at = at->next) {
            accounts[out->account_count++] = (struct backend_account){
                .user = read_text(at, "user"), .password = read_text(at, "password")};
        }
        out->accounts = accounts;
        return;
    }
    if (read_text(node, "user") != NULL) {
        struct backend_account *account = conf_room(loader, 1, sizeof *account);
        *account = (struct backend_account){.user = read_text(node, "user"),
                                            .password = read_text(node, "password")};
        out->accounts = account;
        out->account_count = 1;
    }
}

static void convert_rates(struct conf_loader *loader, const struct conf_node *node,
                          struct conf_backend *out)
{
    const struct conf_node *list = read_section(node, "rates");
    if (list == NULL) {
        return;
    }
    struct conf_rate *rates = conf_room(loader, list->count, sizeof *rates);
    for (const struct conf_node *at = list->first; at != NULL; at = at->next) {
        if (conf_parse_rate(span_of(at->text), &rates[out->rate_count]) == ERR_OK) {
            out->rate_count++;
        }
    }
    out->rates = rates;
}

static uint32_t recipients_limit(const struct conf_node *node, const struct backend_defaults *known)
{
    uint32_t limit = known->recipients < BATCH_RECIPIENTS_MAX ? known->recipients
                                                              : BATCH_RECIPIENTS_MAX;
    uint64_t wanted = read_number_of(node, "recipients_per_message");
    return wanted > 0 && wanted < limit ? (uint32_t)wanted : limit;
}

static void fill_backend(struct conf_loader *loader, const struct conf_node *node,
                         const struct conf *conf, struct conf_backend *out)
{
    const struct conf_node *timeouts = read_section(node, "timeouts");
    out->conf = (struct backend_conf){
        .name = node->key,
        .type = read_text(node, "type"),
        .hostname = conf->hostname,
        .host = read_text(node, "host"),
        .port = (uint16_t)read_number_of(node, "port"),
        .tls = (enum backend_tls)read_number_of(node, "tls"),
        .auth = read_number_of(node, "auth") == 1 ? BACKEND_AUTH_LOGIN : BACKEND_AUTH_NONE,
        .connections = (uint32_t)read_number_of(node, "connections"),
        .endpoint = read_text(node, "endpoint"),
        .access_key = read_text(node, "access_key"),
        .sender = read_text(node, "sender"),
        .api_version = read_text(node, "api_version"),
        .neutral_to = read_text(node, "neutral_to"),
        .ca_file = read_text(node, "ca_file"),
        .message_bytes = read_number_of(node, "message_bytes"),
        .concurrency = (uint32_t)read_number_of(node, "concurrency"),
        .connect_timeout_ms = (int64_t)read_number_of(timeouts, "connect"),
        .reply_timeout_ms = (int64_t)read_number_of(timeouts, "reply"),
    };
    read_strings(loader, node, "mailboxes", &out->conf.mailboxes, &out->conf.mailbox_count);
    convert_accounts(loader, node, &out->conf);
    convert_rates(loader, node, out);
}

static void check_smtp_login(struct conf_loader *loader, const struct conf_node *node,
                             const char *path, const struct backend_conf *b)
{
    bool has_user = node_child(node, "user") != NULL;
    bool has_password = node_child(node, "password") != NULL;
    const struct conf_node *auth = node_child(node, "auth");
    if (has_user != has_password) {
        convert_mistake(loader, node, path, has_user ? "user" : "password", "",
                        "user and password go together");
    } else if (b->auth == BACKEND_AUTH_LOGIN && !has_user) {
        convert_mistake(loader, node, path, "auth", "user and password, or auth: none",
                        "there is no user to log in");
    } else if (has_user && b->auth == BACKEND_AUTH_NONE && auth != NULL && !auth->is_bad) {
        convert_mistake(loader, node, path, "auth", "login, or no user",
                        "user and password would not be used");
    }
}

static void check_backend(struct conf_loader *loader, const struct conf_node *node,
                          const char *path, const struct backend_conf *b)
{
    if (strcmp(b->type, "smtp") == 0) {
        check_smtp_login(loader, node, path, b);
    }
    if (strcmp(b->type, "hve") == 0 && strcmp(node_text(node, "auth"), "none") == 0) {
        convert_mistake(loader, node, path, "auth", "login",
                        "High Volume Email takes no mail without a login");
    }
    if (b->access_key != NULL) {
        struct buf key;
        buf_init_secret(&key, CONF_SECRET_FILE_MAX);
        if (codec_base64_decode(span_of(b->access_key), false, &key) != ERR_OK) {
            convert_mistake(loader, node, path, "access_key",
                            "the key as the Azure portal shows it, in base64",
                            "the access key cannot be used");
        }
        buf_release(&key);
    }
    for (size_t i = 0; i < b->account_count; i++) {
        for (size_t j = 0; j < i && b->accounts[i].user != NULL; j++) {
            if (b->accounts[j].user != NULL &&
                strcmp(b->accounts[j].user, b->accounts[i].user) == 0) {
                convert_mistake(
                    loader, node, path, "accounts", "",
                    conf_textf(loader, "the account %s stands here twice", b->accounts[i].user));
            }
        }
    }
}

static void convert_backend(struct conf_loader *loader, const struct conf_node *node,
                            const struct conf *conf, const struct names *credentials,
                            struct conf_backend *out, struct route_backend *out_route)
{
    char path[CONF_PATH_MAX];
    conf_path_join(path, "backends", node->key);
    *out_route = (struct route_backend){.name = node->key};
    if (node->kind != CONF_NODE_MAP) {
        return;
    }
    fill_backend(loader, node, conf, out);
    const struct backend_defaults *known = backend_defaults(out->conf.type != NULL ? out->conf.type
                                                                                   : "");
    if (known == NULL) {
        return;
    }
    out->conf.recipients_per_message = recipients_limit(node, known);
    out_route->recipients_per_message = out->conf.recipients_per_message;
    out_route->message_bytes = out->conf.message_bytes;
    out_route->internal_only = known->internal_only;
    check_backend(loader, node, path, &out->conf);
    size_t index = 0;
    if (check_name(loader, node, path, "credential", "credential", credentials, &index)) {
        out->conf.credential = &conf->credentials[index];
    }
}

static void convert_backends(struct conf_loader *loader, const struct conf_node *root,
                             struct conf *conf, const struct names *credentials,
                             struct names *names)
{
    const struct conf_node *list = read_section(root, "backends");
    size_t room = list != NULL ? list->count : 0;
    struct conf_backend *backends = conf_room(loader, room, sizeof *backends);
    struct route_backend *routes = conf_room(loader, room, sizeof *routes);
    *names = names_of(loader, room);
    for (const struct conf_node *at = list != NULL ? list->first : NULL; at != NULL;
         at = at->next) {
        convert_backend(loader, at, conf, credentials, &backends[names->count],
                        &routes[names->count]);
        names->texts[names->count++] = at->key;
    }
    if (names->count == 0 && (list != NULL || node_child(root, "backends") == NULL)) {
        convert_mistake(loader, root, "", "backends", "at least one",
                        "there is no backend to send through");
    }
    conf->backends = backends;
    conf->backend_count = names->count;
    conf->route.backends = routes;
    conf->route.backend_count = names->count;
}

/* ---- Routes ---- */

struct route_names {
    const struct names *backends;
    const struct names *lanes;
    const struct names *clients;
};

static void convert_via(struct conf_loader *loader, const struct conf_node *node, const char *path,
                        const struct names *backends, struct route_rule *out)
{
    const struct conf_node *list = read_section(node, "via");
    if (list == NULL) {
        return;
    }
    uint32_t *via = conf_room(loader, list->count, sizeof *via);
    size_t position = 0;
    for (const struct conf_node *at = list->first; at != NULL; at = at->next, position++) {
        char full[CONF_PATH_MAX];
        (void)snprintf(full, sizeof full, "%.200s.via.%zu", path, position);
        size_t index = 0;
        if (!names_find(backends, at->text, &index)) {
            unknown_name(loader, at, full, "backend", backends);
            continue;
        }
        for (size_t i = 0; i < out->via_count; i++) {
            if (via[i] == index) {
                conf_mistake(loader, at, full, "", "\"%s\" stands here twice", at->text);
            }
        }
        via[out->via_count++] = (uint32_t)index;
    }
    out->via = via;
}

/* Rules that could never do anything. */
static void check_rule(struct conf_loader *loader, const struct conf_node *node, const char *path,
                       const struct route_rule *rule, const struct conf *conf)
{
    const struct conf_node *domains = node_at(conf->private_part->root, "tenant.accepted_domains");
    if (rule->recipient == ROUTE_INTERNAL && (domains == NULL || domains->count == 0)) {
        convert_mistake(loader, node, path, "match", "tenant: {accepted_domains: [...]}",
                        "no recipient is internal without accepted domains");
    }
    bool all_internal = rule->via_count > 0;
    for (size_t i = 0; i < rule->via_count; i++) {
        all_internal = all_internal && conf->route.backends[rule->via[i]].internal_only;
    }
    if (rule->recipient == ROUTE_EXTERNAL && all_internal) {
        convert_mistake(loader, node, path, "via", "a backend of type acs, graph or smtp",
                        "High Volume Email delivers to internal recipients only");
    }
}

static void convert_rule(struct conf_loader *loader, const struct conf_node *node, const char *path,
                         const struct route_names *names, const struct conf *conf,
                         struct route_rule *out)
{
    const struct conf_node *match = read_section(node, "match");
    char match_path[CONF_PATH_MAX];
    conf_path_join(match_path, path, "match");
    *out = (struct route_rule){
        .recipient = (enum route_recipient_class)read_number_of(match, "recipient"),
        .lane = read_text(match, "lane"),
        .client = read_text(match, "client"),
        .sender = read_text(match, "sender"),
    };
    read_strings(loader, match, "domains", &out->domains, &out->domain_count);
    size_t index = 0;
    (void)check_name(loader, match, match_path, "lane", "lane", names->lanes, &index);
    (void)check_name(loader, match, match_path, "client", "client", names->clients, &index);
    convert_via(loader, node, path, names->backends, out);
    check_rule(loader, node, path, out, conf);
}

static void convert_routes(struct conf_loader *loader, const struct conf_node *root,
                           struct conf *conf, const struct route_names *names)
{
    const struct conf_node *list = read_section(root, "routes");
    size_t room = list != NULL ? list->count : 0;
    struct route_rule *rules = conf_room(loader, room, sizeof *rules);
    size_t count = 0;
    for (const struct conf_node *at = list != NULL ? list->first : NULL; at != NULL;
         at = at->next) {
        char path[CONF_PATH_MAX];
        (void)snprintf(path, sizeof path, "routes.%zu", count);
        count++;
        if (at->kind == CONF_NODE_MAP) {
            convert_rule(loader, at, path, names, conf, &rules[count - 1]);
        }
    }
    bool is_reported = list == NULL && node_child(root, "routes") != NULL;
    if (count == 0 && !is_reported && (conf->roles & CONF_ROLE_INGEST) != 0) {
        convert_mistake(loader, root, "", "routes", "- {match: {recipient: external}, via: [acs]}",
                        "without routes no recipient has a way out");
    }
    conf->route.rules = rules;
    conf->route.rule_count = count;
    read_strings(loader, read_section(root, "tenant"), "accepted_domains",
                 &conf->route.accepted_domains, &conf->route.accepted_count);
}

/* ---- Clients ---- */

static void check_hash(struct conf_loader *loader, const struct conf_node *node, const char *path,
                       const char *key)
{
    const char *hash = read_text(node, key);
    if (hash != NULL && (hash[0] != '$' || strlen(hash) < 10 || strlen(hash) > 384)) {
        convert_mistake(loader, node, path, key, "what heave passwd prints, such as $y$...",
                        "this is no crypt(3) hash");
    }
}

static void check_client(struct conf_loader *loader, const struct conf_node *node, const char *path)
{
    bool has_user = node_child(node, "user") != NULL;
    bool has_password = node_child(node, "password_hash") != NULL;
    if (has_user != has_password) {
        convert_mistake(loader, node, path, has_user ? "user" : "password_hash", "",
                        "user and password_hash go together");
    } else if (!has_user && node_child(node, "api_key_hash") == NULL &&
               node_child(node, "networks") == NULL && node_child(node, "access_key") == NULL &&
               node_child(node, "access_key_file") == NULL) {
        convert_mistake(loader, node, path, "name",
                        "user and password_hash, api_key_hash or networks",
                        "nothing says how this client is recognised");
    }
    check_hash(loader, node, path, "password_hash");
    check_hash(loader, node, path, "api_key_hash");
    const char *name = read_text(node, "name");
    if (name != NULL && strlen(name) > 64) {
        convert_mistake(loader, node, path, "name", "at most 64 bytes", "the name is too long");
    }
}

static void check_twice(struct conf_loader *loader, const struct conf_node *node, const char *path,
                        const char *key, struct names *seen)
{
    const char *text = read_text(node, key);
    size_t index = 0;
    if (text == NULL) {
        return;
    }
    if (names_find(seen, text, &index)) {
        convert_mistake(loader, node, path, key, "",
                        conf_textf(loader, "another client has the %s \"%.80s\"", key, text));
        return;
    }
    seen->texts[seen->count++] = text;
}

static void fill_client(struct conf_loader *loader, const struct conf_node *node,
                        struct policy_client_conf *out)
{
    const struct conf_node *dedup = read_section(node, "dedup");
    *out = (struct policy_client_conf){
        .name = read_text(node, "name"),
        .user = read_text(node, "user"),
        .password_hash = read_text(node, "password_hash"),
        .api_key_hash = read_text(node, "api_key_hash"),
        .lane = read_text(node, "lane"),
        .may_choose_lane = read_number_of(node, "choose_lane") == 1,
        .recipients = (enum policy_recipients)read_number_of(node, "recipients"),
        .scopes = read_bits(node, "scopes"),
        .dedup =
            {
                .mode = (enum policy_dedup_mode)read_number_of(dedup, "mode"),
                .window_ms = (int64_t)read_number_of(dedup, "window"),
                .limit = (uint32_t)read_number_of(dedup, "limit"),
                .ignore_digits = read_number_of(dedup, "ignore_digits") == 1,
            },
    };
    read_strings(loader, node, "networks", &out->networks, &out->network_count);
    read_strings(loader, node, "from", &out->from, &out->from_count);
}

static void convert_clients(struct conf_loader *loader, const struct conf_node *root,
                            struct conf *conf, const struct names *lanes, struct names *names)
{
    const struct conf_node *list = read_section(root, "clients");
    size_t room = list != NULL ? list->count : 0;
    struct policy_client_conf *clients = conf_room(loader, room, sizeof *clients);
    struct names users = names_of(loader, room);
    *names = names_of(loader, room);
    size_t count = 0;
    for (const struct conf_node *at = list != NULL ? list->first : NULL; at != NULL;
         at = at->next) {
        char path[CONF_PATH_MAX];
        (void)snprintf(path, sizeof path, "clients.%zu", count);
        count++;
        if (at->kind != CONF_NODE_MAP) {
            continue;
        }
        fill_client(loader, at, &clients[count - 1]);
        check_client(loader, at, path);
        check_twice(loader, at, path, "name", names);
        check_twice(loader, at, path, "user", &users);
        size_t index = 0;
        (void)check_name(loader, at, path, "lane", "lane", lanes, &index);
    }
    conf->clients = clients;
    conf->client_count = count;
}

void convert_mail(struct conf_loader *loader, struct conf_node *root, struct conf *conf)
{
    struct names credentials;
    struct names backends;
    struct names clients;
    struct names lanes = names_of(loader, conf->lane_count);
    for (size_t i = 0; i < conf->lane_count; i++) {
        lanes.texts[lanes.count++] = conf->lanes[i].name;
    }
    convert_credentials(loader, root, conf, &credentials);
    convert_backends(loader, root, conf, &credentials, &backends);
    convert_clients(loader, root, conf, &lanes, &clients);
    convert_routes(loader, root, conf,
                   &(struct route_names){
                       .backends = &backends,
                       .lanes = &lanes,
                       .clients = &clients,
                   });
}
