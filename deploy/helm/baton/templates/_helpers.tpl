{{- define "baton.fullname" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 50 }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 }}{{ end }}
{{- end }}

{{- define "baton.selector" -}}
app.kubernetes.io/name: baton
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "baton.labels" -}}
{{ include "baton.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "baton.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "baton.fullname" .) }}
{{- end }}

{{- define "baton.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* Of a container. */}}
{{- define "baton.security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Arguments of the process of a role, in the words of `baton serve`. */}}
{{- define "baton.arguments" -}}
- serve
{{- if ne .root.Values.logFormat "text" }}
- --log-format={{ .root.Values.logFormat }}
{{- end }}
- --config
- /etc/baton/cluster.toml
- --set
- nodes=[{id="$(POD_NAME)",roles=["{{ .role }}"],listen="$(POD_IP):7000"}]
{{- range $key, $value := merge (dict) (index .root.Values .role).settings .root.Values.settings }}
- --set
- {{ printf "%s=%s" $key $value | quote }}
{{- end }}
{{- end }}

{{- define "baton.environment" -}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
{{- with .root.Values.huggingFace.existingSecret }}
- name: HF_TOKEN
  valueFrom: {secretKeyRef: {name: {{ . }}, key: HF_TOKEN}}
{{- end }}
{{- with (index .root.Values .role).env }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "baton.mounts" -}}
- {name: config, mountPath: /etc/baton, readOnly: true}
- {name: certs, mountPath: /var/lib/baton/certs, readOnly: true}
- {name: models, mountPath: /var/lib/baton/models}
- {name: tmp, mountPath: /tmp}
{{- end }}

{{- define "baton.volumes" -}}
- name: config
  configMap: {name: {{ include "baton.fullname" .root }}}
- name: certs
  secret:
    secretName: {{ required "certs.existingSecret names the secret of `baton certs init`" .root.Values.certs.existingSecret }}
    defaultMode: 0440
    # Its own alone: who has them can be a node of this role.
    items:
      - {key: ca.crt, path: ca.crt}
      - {key: {{ .role }}.crt, path: {{ .role }}.crt}
      - {key: {{ .role }}.key, path: {{ .role }}.key}
- name: models
  {{- with .root.Values.models.existingClaim }}
  persistentVolumeClaim: {claimName: {{ . }}}
  {{- else }}
  emptyDir: {sizeLimit: {{ .root.Values.models.sizeLimit }}}
  {{- end }}
- name: tmp
  emptyDir: {}
{{- end }}

{{/* A container that shows a node's metrics to who has a token for them. */}}
{{- define "baton.metricsProxy" -}}
- name: metrics
  image: {{ .Values.nodeMetrics.image | quote }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  args:
    - --secure-listen-address=$(POD_IP):8443
    - --upstream=http://127.0.0.1:8000/
    - --allow-paths=/metrics
  env:
    - name: POD_IP
      valueFrom: {fieldRef: {fieldPath: status.podIP}}
  ports:
    - {name: metrics, containerPort: 8443}
  securityContext: {{- include "baton.security" . | nindent 4 }}
  resources: {{- toYaml .Values.nodeMetrics.resources | nindent 4 }}
  volumeMounts:
    - {name: token, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true}
{{- end }}

{{/* With which that container asks whose a token is. No other container of the pod has it. */}}
{{- define "baton.metricsToken" -}}
- name: token
  projected:
    defaultMode: 0440
    sources:
      - serviceAccountToken: {path: token, expirationSeconds: 3600}
      - configMap: {name: kube-root-ca.crt, items: [{key: ca.crt, path: ca.crt}]}
      - downwardAPI: {items: [{path: namespace, fieldRef: {fieldPath: metadata.namespace}}]}
{{- end }}

{{/* Where pods run. */}}
{{- define "baton.placement" -}}
{{- range $key := list "nodeSelector" "tolerations" "affinity" "topologySpreadConstraints" "priorityClassName" "runtimeClassName" }}
{{- with index $ $key }}
{{ $key }}: {{- if kindIs "string" . }} {{ . }}{{ else }}
{{ toYaml . | indent 2 }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
