/* A certificate authority for one test run: writes PEM files into a fresh directory.
 *
 * Files: ca.pem; server.pem and server.key (localhost, *.heave.test, 127.0.0.1, ::1); client.pem
 * and client.key (subject CN=device 7); alien.pem (a CA that signed nothing); locked.key
 * (server.key with a password). All are ECDSA P-256, which every TLS version from 1.0 on can use.
 */
#ifndef HEAVE_TESTS_LIB_TEST_CERTS_H
#define HEAVE_TESTS_LIB_TEST_CERTS_H

#include "gateway/base/err.h"

#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct test_certs {
    char dir[64];
    char ca[96];
    char server_cert[96];
    char server_key[96];
    char client_cert[96];
    char client_key[96];
    char alien[96];
    char locked_key[96];
};

static inline void test_cert_write(const char *path, const X509 *cert, const EVP_PKEY *key,
                                   const char *password)
{
    FILE *file = fopen(path, "we");
    ASSERT(file != NULL);
    if (cert != NULL) {
        ASSERT(PEM_write_X509(file, cert) == 1);
    }
    if (key != NULL) {
        const EVP_CIPHER *cipher = password != NULL ? EVP_aes_128_cbc() : NULL;
        ASSERT(PEM_write_PKCS8PrivateKey(file, key, cipher, password,
                                         password != NULL ? (int)strlen(password) : 0, NULL,
                                         NULL) == 1);
    }
    ASSERT(fclose(file) == 0);
}

static inline void test_cert_extend(X509 *cert, X509 *issuer, int nid, const char *value)
{
    X509V3_CTX ctx;
    X509V3_set_ctx(&ctx, issuer, cert, NULL, NULL, 0);
    X509_EXTENSION *extension = X509V3_EXT_conf_nid(NULL, &ctx, nid, value);
    ASSERT(extension != NULL);
    ASSERT(X509_add_ext(cert, extension, -1) == 1);
    X509_EXTENSION_free(extension);
}

/* Signed by `issuer`, or by itself as an authority when that is NULL. */
static inline X509 *test_cert_make(const char *name, const char *alt_names, EVP_PKEY *key,
                                   X509 *issuer, EVP_PKEY *issuer_key, long serial)
{
    X509 *cert = X509_new();
    ASSERT(cert != NULL && X509_set_version(cert, X509_VERSION_3) == 1);
    ASSERT(ASN1_INTEGER_set(X509_get_serialNumber(cert), serial) == 1);
    ASSERT(X509_gmtime_adj(X509_getm_notBefore(cert), -3600) != NULL);
    ASSERT(X509_gmtime_adj(X509_getm_notAfter(cert), 86400) != NULL);
    ASSERT(X509_NAME_add_entry_by_txt(X509_get_subject_name(cert), "CN", MBSTRING_ASC,
                                      (const unsigned char *)name, -1, -1, 0) == 1);
    X509 *signer = issuer != NULL ? issuer : cert;
    ASSERT(X509_set_issuer_name(cert, X509_get_subject_name(signer)) == 1);
    ASSERT(X509_set_pubkey(cert, key) == 1);
    test_cert_extend(cert, signer, NID_basic_constraints,
                     issuer == NULL ? "critical,CA:TRUE" : "CA:FALSE");
    if (alt_names != NULL) {
        test_cert_extend(cert, signer, NID_subject_alt_name, alt_names);
    }
    ASSERT(X509_sign(cert, issuer != NULL ? issuer_key : key, EVP_sha256()) > 0);
    return cert;
}

static inline void test_certs_make(struct test_certs *certs)
{
    const char *base = getenv("TMPDIR");
    (void)snprintf(certs->dir, sizeof(certs->dir), "%.40s/heave-XXXXXX",
                   base != NULL ? base : "/tmp");
    ASSERT(mkdtemp(certs->dir) != NULL);
    (void)snprintf(certs->ca, sizeof(certs->ca), "%s/ca.pem", certs->dir);
    (void)snprintf(certs->server_cert, sizeof(certs->server_cert), "%s/server.pem", certs->dir);
    (void)snprintf(certs->server_key, sizeof(certs->server_key), "%s/server.key", certs->dir);
    (void)snprintf(certs->client_cert, sizeof(certs->client_cert), "%s/client.pem", certs->dir);
    (void)snprintf(certs->client_key, sizeof(certs->client_key), "%s/client.key", certs->dir);
    (void)snprintf(certs->alien, sizeof(certs->alien), "%s/alien.pem", certs->dir);
    (void)snprintf(certs->locked_key, sizeof(certs->locked_key), "%s/locked.key", certs->dir);

    EVP_PKEY *ca_key = EVP_EC_gen("P-256");
    EVP_PKEY *server_key = EVP_EC_gen("P-256");
    EVP_PKEY *client_key = EVP_EC_gen("P-256");
    EVP_PKEY *alien_key = EVP_EC_gen("P-256");
    ASSERT(ca_key != NULL && server_key != NULL && client_key != NULL && alien_key != NULL);
    X509 *ca = test_cert_make("heave test CA", NULL, ca_key, NULL, NULL, 1);
    X509 *server = test_cert_make("localhost", "DNS:localhost,DNS:*.heave.test,IP:127.0.0.1,IP:::1",
                                  server_key, ca, ca_key, 2);
    X509 *client = test_cert_make("device 7", NULL, client_key, ca, ca_key, 3);
    X509 *alien = test_cert_make("alien CA", NULL, alien_key, NULL, NULL, 1);
    test_cert_write(certs->ca, ca, NULL, NULL);
    test_cert_write(certs->server_cert, server, NULL, NULL);
    test_cert_write(certs->server_key, NULL, server_key, NULL);
    test_cert_write(certs->client_cert, client, NULL, NULL);
    test_cert_write(certs->client_key, NULL, client_key, NULL);
    test_cert_write(certs->alien, alien, NULL, NULL);
    test_cert_write(certs->locked_key, NULL, server_key, "secret");
    X509_free(ca);
    X509_free(server);
    X509_free(client);
    X509_free(alien);
    EVP_PKEY_free(ca_key);
    EVP_PKEY_free(server_key);
    EVP_PKEY_free(client_key);
    EVP_PKEY_free(alien_key);
}

static inline void test_certs_remove(const struct test_certs *certs)
{
    ASSERT(unlink(certs->ca) == 0);
    ASSERT(unlink(certs->server_cert) == 0);
    ASSERT(unlink(certs->server_key) == 0);
    ASSERT(unlink(certs->client_cert) == 0);
    ASSERT(unlink(certs->client_key) == 0);
    ASSERT(unlink(certs->alien) == 0);
    ASSERT(unlink(certs->locked_key) == 0);
    ASSERT(rmdir(certs->dir) == 0);
}

#endif
