#include "bench/sim/sim_tls.h"

#include "gateway/base/codec.h"

#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define DAY_S 86400L
#define CA_DAYS 3650L
#define SERVER_DAYS 390L /* some clients refuse server certificates above 398 days */
#define NAMES \
    "DNS:localhost,DNS:smtp.hve.sim,DNS:acs.sim,DNS:graph.sim,DNS:login.sim,DNS:*.sim,IP:127.0.0.1,IP:0:0:0:0:0:0:0:1"

struct extension {
    int nid;
    const char *value;
};

static const struct extension CA_EXTENSIONS[] = {
    {NID_basic_constraints, "critical,CA:TRUE,pathlen:0"},
    {NID_key_usage, "critical,keyCertSign,cRLSign"},
    {NID_subject_key_identifier, "hash"},
    {0, NULL},
};
static const struct extension SERVER_EXTENSIONS[] = {
    {NID_basic_constraints, "critical,CA:FALSE"},
    {NID_key_usage, "critical,digitalSignature"},
    {NID_ext_key_usage, "serverAuth"},
    {NID_subject_key_identifier, "hash"},
    {NID_authority_key_identifier, "keyid:always"},
    {NID_subject_alt_name, NAMES},
    {0, NULL},
};
static const struct extension BAD_EXTENSIONS[] = {
    {NID_basic_constraints, "critical,CA:FALSE"},
    {NID_ext_key_usage, "serverAuth"},
    {NID_subject_alt_name, "DNS:elsewhere.invalid"},
    {0, NULL},
};

static bool add_extensions(X509 *cert, X509 *issuer, const struct extension *list)
{
    X509V3_CTX ctx;
    X509V3_set_ctx_nodb(&ctx);
    X509V3_set_ctx(&ctx, issuer, cert, NULL, NULL, 0);
    for (size_t i = 0; list[i].value != NULL; i++) {
        X509_EXTENSION *extension = X509V3_EXT_conf_nid(NULL, &ctx, list[i].nid, list[i].value);
        if (extension == NULL) {
            return false;
        }
        int added = X509_add_ext(cert, extension, -1);
        X509_EXTENSION_free(extension);
        if (added != 1) {
            return false;
        }
    }
    return true;
}

static bool set_serial(X509 *cert)
{
    uint64_t serial = 0;
    codec_random(&serial, sizeof(serial));
    return ASN1_INTEGER_set_uint64(X509_get_serialNumber(cert), serial >> 1 | 1) == 1;
}

/* What a certificate is made of. `issuer` NULL: signed by its own key. */
struct recipe {
    const char *common_name;
    long days;
    const struct extension *extensions;
    X509 *issuer;
    EVP_PKEY *issuer_key;
};

static X509 *make_cert(EVP_PKEY *key, const struct recipe *recipe)
{
    X509 *cert = X509_new();
    if (cert == NULL) {
        return NULL;
    }
    X509 *issuer = recipe->issuer != NULL ? recipe->issuer : cert;
    EVP_PKEY *issuer_key = recipe->issuer_key != NULL ? recipe->issuer_key : key;
    X509_NAME *name = X509_get_subject_name(cert);
    bool good = X509_set_version(cert, 2) == 1 && set_serial(cert) &&
                X509_gmtime_adj(X509_getm_notBefore(cert), -DAY_S) != NULL &&
                X509_gmtime_adj(X509_getm_notAfter(cert), recipe->days * DAY_S) != NULL &&
                X509_set_pubkey(cert, key) == 1 &&
                X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_UTF8,
                                           (const unsigned char *)recipe->common_name, -1, -1,
                                           0) == 1 &&
                X509_set_issuer_name(cert, X509_get_subject_name(issuer)) == 1 &&
                add_extensions(cert, issuer, recipe->extensions) &&
                X509_sign(cert, issuer_key, EVP_sha256()) > 0;
    if (!good) {
        X509_free(cert);
        return NULL;
    }
    return cert;
}

static FILE *create_file(const char *path, mode_t mode)
{
    /* A new inode, so that the mode is right even when an older file was there. */
    if (unlink(path) != 0 && errno != ENOENT) {
        return NULL;
    }
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
    if (fd < 0) {
        return NULL;
    }
    FILE *file = fdopen(fd, "w");
    if (file == NULL) {
        (void)close(fd); /* nothing was written */
    }
    return file;
}

static int write_pair(const char *cert_path, const char *key_path, X509 *cert, EVP_PKEY *key,
                      struct err *err)
{
    FILE *file = create_file(key_path, 0600);
    if (file == NULL) {
        return err_set(err, ERR_IO, "%s cannot be written: %s.", key_path, strerror(errno));
    }
    bool good = PEM_write_PrivateKey(file, key, NULL, NULL, 0, NULL, NULL) == 1;
    good = fclose(file) == 0 && good;
    file = good ? create_file(cert_path, 0644) : NULL;
    if (file == NULL) {
        return err_set(err, ERR_IO, "%s cannot be written: %s.", cert_path, strerror(errno));
    }
    good = PEM_write_X509(file, cert) == 1;
    good = fclose(file) == 0 && good;
    return good ? 0 : err_set(err, ERR_IO, "%s cannot be written: %s.", cert_path, strerror(errno));
}

static int make_pair(const char *cert_path, const char *key_path, const struct recipe *recipe,
                     X509 **out_cert, EVP_PKEY **out_key, struct err *err)
{
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *cert = key != NULL ? make_cert(key, recipe) : NULL;
    if (cert == NULL) {
        EVP_PKEY_free(key);
        return err_set(err, ERR_INVAL, "libcrypto could not make the certificate %s.", cert_path);
    }
    int result = write_pair(cert_path, key_path, cert, key, err);
    if (result == 0 && out_cert != NULL) {
        *out_cert = cert;
        *out_key = key;
        return 0;
    }
    X509_free(cert);
    EVP_PKEY_free(key);
    return result;
}

static X509 *read_cert(const char *path)
{
    FILE *file = fopen(path, "re");
    if (file == NULL) {
        return NULL;
    }
    X509 *cert = PEM_read_X509(file, NULL, NULL, NULL);
    (void)fclose(file); /* only read */
    return cert;
}

/* A complete set of files: the CA signed the server, and nothing ends within a day. */
static bool files_usable(const struct sim_tls_files *files)
{
    const char *const needed[] = {files->ca_key, files->server_key, files->bad, files->bad_key};
    for (size_t i = 0; i < sizeof(needed) / sizeof(needed[0]); i++) {
        if (access(needed[i], R_OK) != 0) {
            return false;
        }
    }
    X509 *ca = read_cert(files->ca);
    X509 *server = read_cert(files->server);
    time_t tomorrow = time(NULL) + DAY_S;
    bool good = ca != NULL && server != NULL && X509_verify(server, X509_get0_pubkey(ca)) == 1 &&
                X509_cmp_time(X509_get0_notAfter(server), &tomorrow) > 0 &&
                X509_cmp_time(X509_get0_notAfter(ca), &tomorrow) > 0;
    X509_free(ca);
    X509_free(server);
    return good;
}

static int make_files(const struct sim_tls_files *files, struct err *err)
{
    X509 *ca = NULL;
    EVP_PKEY *ca_key = NULL;
    struct recipe recipe = {
        .common_name = "heave-sim CA", .days = CA_DAYS, .extensions = CA_EXTENSIONS};
    int result = make_pair(files->ca, files->ca_key, &recipe, &ca, &ca_key, err);
    if (result == 0) {
        recipe = (struct recipe){.common_name = "localhost",
                                 .days = SERVER_DAYS,
                                 .extensions = SERVER_EXTENSIONS,
                                 .issuer = ca,
                                 .issuer_key = ca_key};
        result = make_pair(files->server, files->server_key, &recipe, NULL, NULL, err);
    }
    if (result == 0) {
        recipe = (struct recipe){
            .common_name = "elsewhere.invalid", .days = SERVER_DAYS, .extensions = BAD_EXTENSIONS};
        result = make_pair(files->bad, files->bad_key, &recipe, NULL, NULL, err);
    }
    X509_free(ca);
    EVP_PKEY_free(ca_key);
    return result;
}

int sim_tls_prepare(const char *dir, struct sim_tls_files *out, struct err *err)
{
    struct sim_tls_files files;
    const struct {
        char *path;
        const char *name;
    } rows[] = {
        {files.ca, "ca.pem"},         {files.ca_key, "ca.key"},
        {files.server, "server.pem"}, {files.server_key, "server.key"},
        {files.bad, "bad.pem"},       {files.bad_key, "bad.key"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        int len = snprintf(rows[i].path, SIM_TLS_PATH_MAX, "%s/%s", dir, rows[i].name);
        if (len < 0 || len >= SIM_TLS_PATH_MAX) {
            return err_set(err, ERR_INVAL, "The path of --dir is too long.");
        }
    }
    if (!files_usable(&files)) {
        int result = make_files(&files, err);
        if (result != 0) {
            return result;
        }
    }
    *out = files;
    return 0;
}
