#!/bin/sh
# Makes the fixtures in this directory with openssl, on purpose not with plinth: tests must read what kubeadm and
# people with openssl write, not our own output. Dates are fixed, and tests bring their own clock, so nothing here
# ever expires. Run it again only to add a fixture: every key changes.
# shellcheck disable=SC2046  # by() prints two arguments
set -eu
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

rm -rf kubeadm ec broken
mkdir kubeadm ec broken

start=20260101000000Z
ca_end=20360101000000Z
leaf_end=20270101000000Z
names="DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local,DNS:master-0"
addresses="IP:10.96.0.1,IP:192.0.2.10"
leaf="basicConstraints=critical,CA:FALSE
keyUsage=critical,digitalSignature,keyEncipherment"
authority="basicConstraints=critical,CA:TRUE
keyUsage=critical,digitalSignature,keyEncipherment,keyCertSign
subjectKeyIdentifier=hash"

# PrintableString subjects, as Go writes them (openssl's default is UTF8String).
cat > "$work/ca.cnf" <<END
[req]
distinguished_name = dn
string_mask = pkix
[dn]
[ca]
default_ca = main
[main]
database = $work/index.txt
new_certs_dir = $work
unique_subject = no
policy = any
default_md = sha256
rand_serial = yes
[any]
organizationName = optional
commonName = optional
END
: > "$work/index.txt"

# sign SUBJECT KEY CERTIFICATE START END EXTENSIONS [SIGNING-OPTIONS...]
sign() {
    subject=$1 key=$2 certificate=$3 from=$4 to=$5
    printf '%s\n' "$6" > "$work/extensions"
    shift 6
    openssl req -new -config "$work/ca.cnf" -subj "$subject" -key "$key" -out "$work/request"
    openssl ca -batch -notext -preserveDN -config "$work/ca.cnf" -in "$work/request" -out "$certificate" \
        -startdate "$from" -enddate "$to" -extfile "$work/extensions" "$@" 2> "$work/log" || { cat "$work/log"; exit 1; }
}
by() { printf '%s' "-cert $1.crt -keyfile $1.key"; }

# --- kubeadm/: RSA-2048, PKCS#1 keys, the extensions kubeadm sets.
rsa() { openssl genrsa -traditional -out "$1" 2048 2> /dev/null; }
rsa kubeadm/ca.key
sign /CN=kubernetes kubeadm/ca.key kubeadm/ca.crt $start $ca_end "$authority
subjectAltName=DNS:kubernetes" -selfsign -keyfile kubeadm/ca.key
rsa kubeadm/apiserver.key
sign /CN=kube-apiserver kubeadm/apiserver.key kubeadm/apiserver.crt $start $leaf_end "$leaf
extendedKeyUsage=serverAuth
authorityKeyIdentifier=keyid
subjectAltName=$names,$addresses" $(by kubeadm/ca)
rsa kubeadm/sa.key
openssl rsa -in kubeadm/sa.key -pubout -out kubeadm/sa.pub 2> /dev/null
rsa "$work/admin.key"
sign /O=kubeadm:cluster-admins/CN=kubernetes-admin "$work/admin.key" "$work/admin.crt" $start $leaf_end "$leaf
extendedKeyUsage=clientAuth
authorityKeyIdentifier=keyid" $(by kubeadm/ca)
# kubeconfig USER CERTIFICATE KEY AUTHORITY > FILE: clientcmd's form, keys sorted.
kubeconfig() {
    cat <<END
apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: $(base64 -w0 "$4")
    server: https://192.0.2.10:6443
  name: kubernetes
contexts:
- context:
    cluster: kubernetes
    user: $1
  name: $1@kubernetes
current-context: $1@kubernetes
kind: Config
preferences: {}
users:
- name: $1
  user:
    client-certificate-data: $(base64 -w0 "$2")
    client-key-data: $(base64 -w0 "$3")
END
}
kubeconfig kubernetes-admin "$work/admin.crt" "$work/admin.key" kubeadm/ca.crt > kubeadm/admin.conf

# --- ec/: what people bring: `openssl ecparam -genkey` (EC PARAMETERS, then SEC 1), PKCS#8, P-384, an intermediate.
openssl ecparam -name prime256v1 -genkey -out ec/ca.key
sign /CN=kubernetes ec/ca.key ec/ca.crt $start $ca_end "$authority" -selfsign -keyfile ec/ca.key
openssl ecparam -name prime256v1 -genkey -out ec/apiserver.key
ok="$leaf
extendedKeyUsage=serverAuth
subjectAltName=$names,$addresses"
sign /CN=kube-apiserver ec/apiserver.key ec/apiserver.crt $start $leaf_end "$ok" $(by ec/ca)
openssl pkcs8 -topk8 -nocrypt -in ec/apiserver.key -out ec/apiserver-pkcs8.key
openssl ec -in ec/apiserver.key -no_public -out ec/apiserver-no-public.key 2> /dev/null
openssl ecparam -name secp384r1 -genkey -noout -out "$work/intermediate.key"
sign "/O=Example/CN=intermediate" "$work/intermediate.key" "$work/intermediate.crt" $start $ca_end "$authority" $(by ec/ca)
sign /CN=kube-apiserver ec/apiserver.key "$work/below.crt" $start $leaf_end "$ok" $(by "$work/intermediate")
cat "$work/below.crt" "$work/intermediate.crt" > ec/apiserver-chain.crt
# A wildcard covers master-0.example.com; no key usages at all, so every usage is allowed.
sign /CN=kube-apiserver ec/apiserver.key ec/wildcard.crt $start $leaf_end \
    "subjectAltName=DNS:*.example.com,IP:192.0.2.10" $(by ec/ca)

# --- broken/: each wrong in one respect; the key is ec/apiserver.key and the authority ec/ca unless named otherwise.
bad() { certificate=broken/$1.crt; shift; sign /CN=kube-apiserver ec/apiserver.key "$certificate" "$@"; }
bad expired 20240101000000Z 20250101000000Z "$ok" $(by ec/ca)
bad not-yet-valid 20300101000000Z 20310101000000Z "$ok" $(by ec/ca)
bad missing-san $start $leaf_end "$leaf
extendedKeyUsage=serverAuth
subjectAltName=$names,IP:10.96.0.1" $(by ec/ca)
bad client-only $start $leaf_end "$leaf
extendedKeyUsage=clientAuth
subjectAltName=$names,$addresses" $(by ec/ca)
bad no-signature-usage $start $leaf_end "keyUsage=critical,keyEncipherment
extendedKeyUsage=serverAuth
subjectAltName=$names,$addresses" $(by ec/ca)
# Another authority of the same name: only the signature tells.
openssl ecparam -name prime256v1 -genkey -noout -out broken/other-ca.key
sign /CN=kubernetes broken/other-ca.key broken/other-ca.crt $start $ca_end "$authority" -selfsign -keyfile broken/other-ca.key
bad wrong-ca $start $leaf_end "$ok" $(by broken/other-ca)
# A leaf that passes itself off as an intermediate.
sign /CN=kube-apiserver ec/apiserver.key "$work/below.crt" $start $leaf_end "$ok" $(by ec/apiserver)
cat "$work/below.crt" ec/apiserver.crt > broken/chain-through-leaf.crt
openssl ecparam -name prime256v1 -genkey -noout -out broken/other.key
sign /CN=kubernetes ec/ca.key broken/not-a-ca.crt $start $ca_end "$leaf" -selfsign -keyfile ec/ca.key
sign /CN=kubernetes ec/ca.key broken/ca-may-not-sign.crt $start $ca_end "basicConstraints=critical,CA:TRUE
keyUsage=critical,digitalSignature" -selfsign -keyfile ec/ca.key
sign /CN=kubernetes ec/ca.key broken/ca-expired.crt 20150101000000Z 20250101000000Z "$authority" -selfsign -keyfile ec/ca.key
# Two organisations: rcgen cannot repeat such a name as an issuer.
sign /O=Example/O=Platform/CN=kubernetes ec/ca.key broken/ca-two-organizations.crt $start $ca_end "$authority" \
    -selfsign -keyfile ec/ca.key
openssl ec -aes128 -passout pass:fixture -in ec/apiserver.key -out broken/encrypted-sec1.key 2> /dev/null
openssl pkcs8 -topk8 -passout pass:fixture -in ec/apiserver.key -out broken/encrypted-pkcs8.key
openssl genrsa -traditional -out broken/rsa-1024.key 1024 2> /dev/null
printf 'this is not PEM\n' > broken/garbage.pem
printf -- '-----BEGIN CERTIFICATE-----\nAAECAwQ=\n-----END CERTIFICATE-----\n' > broken/not-x509.crt
head -n 5 ec/apiserver.crt > broken/cut.crt
